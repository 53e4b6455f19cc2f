"""Training runs: listed, started, stopped, resumed, deleted, and what they said."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from moescope.store import CheckpointRow, RunRow, Store, TraceRow

from moescope_server.deps import Id, StoreDep
from moescope_server.routes.events import public_event
from moescope_server.schemas import EventPublic, RunPublic

router = APIRouter(prefix="/runs")


def public(store: Store, row: RunRow) -> RunPublic:
    snapshots = sorted(store.database.all(TraceRow, run=row.id), key=lambda trace: trace.step or 0)
    checkpoints = sorted(store.database.all(CheckpointRow, run=row.id), key=lambda item: item.step or 0)
    made = RunPublic.model_validate(row)
    return made.model_copy(
        update={"snapshots": [trace.id for trace in snapshots], "checkpoints": [item.id for item in checkpoints]}
    )


@router.get("")
def list_runs(store: StoreDep) -> list[RunPublic]:
    return [public(store, row) for row in store.runs()]


@router.get("/{id}")
def one_run(id: Id, store: StoreDep) -> RunPublic:
    return public(store, store.run(id))


@router.delete("/{id}", status_code=204)
def delete_run(id: Id, store: StoreDep) -> None:
    store.delete_run(id)


@router.get("/{id}/events")
def run_events(
    id: Id,
    store: StoreDep,
    after: Annotated[int, Query(ge=0)] = 0,
    kind: Annotated[list[str] | None, Query()] = None,
    limit: Annotated[int | None, Query(ge=1)] = None,
) -> list[EventPublic]:
    store.run(id)
    return [public_event(event) for event in store.events_after(after, id, kind, limit)]
