"""Orders by hand to runs in training: in order, each answered by one `order` event, and then never taken again."""

from __future__ import annotations

from moescope.errors import InputError
from moescope.events import Event
from moescope.store.database import Database
from moescope.store.ids import new_id, now
from moescope.store.rows import OrderKind, OrderRow, RunRow


class Orders:
    """The table of orders. Whoever gives one and whoever carries it out are different processes."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def add(self, run: RunRow, kind: OrderKind, layer: int | None = None, expert: int | None = None) -> OrderRow:
        """Give an order. Raises `InputError` where the run is not in training, or the order is not complete."""
        aimed = kind in ("split", "retire")
        if aimed and (layer is None or expert is None):
            raise InputError(f"Say which layer and which expert to {kind}.")
        if not aimed and (layer is not None or expert is not None):
            raise InputError(f"{kind!r} is for the whole run: it takes no layer and no expert.")
        with self.database.transaction():
            current = self.database.get(RunRow, run.id)
            if current is None or current.status not in ("running", "paused"):
                status = "gone" if current is None else current.status
                raise InputError(f"{run.name!r} is {status}: only a run in training takes orders.")
            if current.job is None:
                raise InputError(f"{run.name!r} is only watched: the process that trains it takes no orders from here.")
            row = OrderRow(id=new_id(kind), run=run.id, kind=kind, created=now(), layer=layer, expert=expert)
            self.database.put(row)
        return row

    def open(self, run: str) -> list[OrderRow]:
        """Orders without an answer, in the order in which they were given."""
        return self.database.all(OrderRow, run=run, answer=None)

    def answer(self, event: Event) -> None:
        """An `order` event answers the order that it names; called with the event's own transaction open."""
        id = str(event.payload.get("id"))
        self.database.update(OrderRow, id, where={"run": event.run, "answer": None}, answer=event.id)
