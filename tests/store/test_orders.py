"""Laws of orders: given only to a run in training, taken in order, answered once, gone with their run."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from moescope.errors import InputError
from moescope.events import Event
from moescope.store import OrderRow, RunRow, Store
from moescope.store.schema import MIGRATIONS


@pytest.fixture
def store(home: Path, tmp_path: Path) -> Store:
    (tmp_path / "samples").mkdir()
    return Store(home, samples=tmp_path / "samples")


def started(store: Store) -> RunRow:
    run = store.add_run("A run", "preset", {}, steps=10)
    store.database.update(RunRow, run.id, job="train-1")
    store.append(Event(run=run.id, step=0, kind="run_started", payload={}))
    return store.run(run.id)


def answer(run: str, id: str, **payload: Any) -> Event:
    return Event(run=run, step=3, kind="order", payload={"id": id, "done": True, **payload})


def test_orders_wait_in_order_until_an_event_answers_them(store: Store) -> None:
    run = started(store)
    given = [store.orders.add(run, "split", 1, expert) for expert in range(5)] + [store.orders.add(run, "pause")]
    assert store.orders.open(run.id) == given
    event = store.append(answer(run.id, given[2].id))
    assert store.orders.open(run.id) == [row for row in given if row.id != given[2].id]
    assert store.database.get(OrderRow, given[2].id) == OrderRow(**{**vars(given[2]), "answer": event.id})
    store.append(answer(run.id, given[2].id, done=False))  # a second answer changes nothing
    row = store.database.get(OrderRow, given[2].id)
    assert row is not None and row.answer == event.id


def test_an_answer_counts_only_for_its_own_run_and_with_its_event(store: Store) -> None:
    run, other = started(store), started(store)
    order = store.orders.add(run, "pause")
    store.append(answer(other.id, order.id))
    store.append(answer(run.id, "no-such-order"))
    assert store.orders.open(run.id) == [order]
    with pytest.raises(TypeError):
        store.append_many([answer(run.id, order.id), Event(run=run.id, step=4, kind="train", payload={"a": object()})])
    assert store.orders.open(run.id) == [order]


@pytest.mark.parametrize("status", ["queued", "finished", "stopped", "failed"])
def test_only_a_run_in_training_takes_orders(store: Store, status: str) -> None:
    run = started(store)
    store.database.update(RunRow, run.id, status=status)
    with pytest.raises(InputError, match=f"is {status}: only a run in training takes orders"):
        store.orders.add(run, "pause")
    store.database.update(RunRow, run.id, status="finished")
    store.delete_run(run.id)
    with pytest.raises(InputError, match="is gone"):
        store.orders.add(run, "pause")


def test_a_run_that_is_only_watched_takes_none(store: Store) -> None:
    run = started(store)
    store.database.update(RunRow, run.id, job=None)
    with pytest.raises(InputError, match="is only watched"):
        store.orders.add(run, "pause")


def test_an_order_says_what_it_is_for_and_no_more(store: Store) -> None:
    run = started(store)
    for kind in ("split", "retire"):
        with pytest.raises(InputError, match="which layer and which expert"):
            store.orders.add(run, kind, layer=1)
    with pytest.raises(InputError, match="takes no layer"):
        store.orders.add(run, "pause", expert=0)
    assert store.orders.open(run.id) == []


def test_a_pause_is_a_status_and_holds_the_run_fast(store: Store) -> None:
    run = started(store)
    store.append(Event(run=run.id, step=4, kind="run_paused", payload={}))
    assert (store.run(run.id).status, store.run(run.id).step, store.run(run.id).active) == ("paused", 4, True)
    store.orders.add(run, "go_on")
    with pytest.raises(InputError, match="is paused; stop it before deleting it"):
        store.delete_run(run.id)
    store.append(Event(run=run.id, step=4, kind="run_unpaused", payload={"seconds": 1.0}))
    assert store.run(run.id).status == "running"


def test_orders_go_with_their_run(store: Store) -> None:
    run = started(store)
    store.orders.add(run, "checkpoint")
    store.append(Event(run=run.id, step=4, kind="run_stopped", payload={"path": None}))
    store.delete_run(run.id)
    assert store.database.all(OrderRow) == []


def test_a_run_found_dead_says_so_until_it_goes_on(store: Store) -> None:
    run = started(store)
    store.append(Event(run=run.id, step=4, kind="run_failed", payload={"error": "It was killed.", "orphan": True}))
    dead = store.run(run.id)
    assert (dead.status, dead.error, dead.orphan) == ("failed", "It was killed.", True)
    store.append(Event(run=run.id, step=2, kind="run_resumed", payload={"from_step": 2}))
    alive = store.run(run.id)
    assert (alive.status, alive.error, alive.orphan) == ("running", None, False)


def test_a_home_of_the_first_release_is_brought_up_to_date(home: Path, tmp_path: Path) -> None:
    with sqlite3.connect(home / "moescope.sqlite") as old:
        old.executescript(MIGRATIONS[0])
        values = (
            "old-1",
            "Old",
            "lm-small",
            "stopped",
            "2025-01-01T00:00:00",
            7,
            9,
            None,
            '{"a": 1}',
            None,
        )
        old.execute(f"INSERT INTO runs VALUES ({', '.join('?' * len(values))})", values)
        old.execute("INSERT INTO events VALUES (41, 'old-1', 7, 'run_stopped', '{\"path\": null}', 1.0)")
        old.execute("PRAGMA user_version=1")
    old.close()
    (tmp_path / "samples").mkdir()
    store = Store(home, samples=tmp_path / "samples")
    run = store.run("old-1")
    assert (run.status, run.step, run.steps, run.config) == ("stopped", 7, 9, {"a": 1})
    assert (run.fork, run.orphan, run.origin, run.path) == (None, False, "run", None)
    assert [event.id for event in store.events_after(0, "old-1")] == [41]
    store.append(Event(run="old-1", step=7, kind="run_resumed", payload={"from_step": 7}))
    store.database.update(RunRow, "old-1", job="train-1")
    order = store.orders.add(store.run("old-1"), "checkpoint")
    assert store.orders.open("old-1") == [order] and store.last_event_id() == 42
    store.close()
    again = Store(home, samples=tmp_path / "samples")  # and only once
    assert again.orders.open("old-1") == [order]
    again.close()
