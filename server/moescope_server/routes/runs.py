"""Training runs: listed, started, stopped, resumed, deleted, and what they said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response

from moescope.config import dump
from moescope.errors import InputError
from moescope.store import CheckpointRow, JobRow, RunRow, Store, TraceRow
from moescope_server.deps import Id, JobsDep, ServicesDep, StoreDep
from moescope_server.jobs import JobRunner
from moescope_server.routes.events import MAX_ID, public_event
from moescope_server.run_figures import growth, readable, run_figure
from moescope_server.schemas import (
    EventPublic,
    OrderCreate,
    OrderGiven,
    RunCheck,
    RunChecked,
    RunCreate,
    RunPublic,
    RunStarted,
)
from moescope_server.starting import Wanted, create_run, plan_run
from moescope_server.training import can_resume
from moescope_server.wire import JSON

router = APIRouter(prefix="/runs")


def public(store: Store, row: RunRow, ahead: Mapping[str, int]) -> RunPublic:
    snapshots = sorted(store.database.all(TraceRow, run=row.id), key=lambda trace: trace.step or 0)
    checkpoints = sorted(store.database.all(CheckpointRow, run=row.id), key=lambda item: item.step or 0)
    made = RunPublic.model_validate(row)
    return made.model_copy(
        update={
            "snapshots": [trace.id for trace in snapshots],
            "checkpoints": [item.id for item in checkpoints],
            "ahead": ahead.get(row.job or "", 0),
            "sample": row.origin == "sample",
        }
    )


@router.get("")
def list_runs(store: StoreDep, jobs: JobsDep) -> list[RunPublic]:
    ahead = jobs.ahead()
    return [public(store, row, ahead) for row in store.runs()]


@router.post("", status_code=202)
def start_run(body: RunCreate, store: StoreDep, jobs: JobsDep) -> RunStarted:
    wanted = _planned(store, body)
    with store.database.transaction():
        run = create_run(store, wanted, body.name)
        return RunStarted(run=run.id, job=_submit(store, jobs, run, resume=False).id)


@router.post("/check")
def check_run(body: RunCheck, store: StoreDep) -> Response:
    """What starting would do; nothing is started."""
    try:
        config = dump(_planned(store, body).config)
    except InputError as error:
        return JSON(RunChecked(ok=False, error=str(error), config=None).model_dump())
    return JSON(RunChecked(ok=True, error=None, config=config).model_dump())


def _planned(store: Store, body: RunCheck) -> Wanted:
    from moescope.train.preset import preset_names

    if body.preset is not None and body.preset not in preset_names():
        raise InputError(f"There is no preset {body.preset!r}; there are {', '.join(preset_names())}.")
    return plan_run(store, body.preset, body.set, body.fork)


@router.post("/{id}/orders", status_code=202)
def order(id: Id, body: OrderCreate, store: StoreDep) -> OrderGiven:
    """Ask something of a run in training; the `order` event says what came of it."""
    return OrderGiven(order=store.orders.add(store.run(id), body.kind, body.layer, body.expert).id)


@router.post("/{id}/stop")
def stop_run(id: Id, store: StoreDep, jobs: JobsDep) -> RunPublic:
    run = store.run(id)
    if not run.active:
        raise InputError(f"{run.name!r} is {run.status}: there is nothing to stop.")
    if run.job is None:
        raise InputError(f"{run.name!r} is only watched: the program that trains it can stop it.")
    jobs.cancel(run.job)
    return public(store, store.run(id), jobs.ahead())


@router.post("/{id}/resume", status_code=202)
def resume_run(id: Id, store: StoreDep, jobs: JobsDep) -> RunStarted:
    with store.database.transaction():
        run = store.run(id)
        can_resume(store, run)
        return RunStarted(run=run.id, job=_submit(store, jobs, run, resume=True).id)


def _submit(store: Store, jobs: JobRunner, run: RunRow, *, resume: bool) -> JobRow:
    with store.database.transaction():
        job = jobs.submit("train", {"run": run.id, "resume": resume})
        store.database.update(RunRow, run.id, job=job.id, status="queued", error=None, orphan=False)
    return job


@router.get("/{id}")
def one_run(id: Id, store: StoreDep, jobs: JobsDep) -> RunPublic:
    return public(store, store.run(id), jobs.ahead())


@router.delete("/{id}", status_code=204)
def delete_run(id: Id, store: StoreDep) -> None:
    store.delete_run(id)


@router.get("/{id}/events")
def run_events(
    id: Id,
    store: StoreDep,
    after: Annotated[int, Query(ge=0, le=MAX_ID)] = 0,
    kind: Annotated[list[str] | None, Query()] = None,
    limit: Annotated[int | None, Query(ge=1, le=MAX_ID)] = None,
) -> list[EventPublic]:
    store.run(id)
    return [public_event(event) for event in store.events_after(after, id, kind, limit)]


@router.get("/{id}/figures/{name}")
def figure(
    id: Id,
    name: str,
    all: ServicesDep,
    layer: int | None = None,
    expert: int | None = None,
    signal: Annotated[str | None, Query(max_length=200)] = None,
    step: int | None = None,
    before: int | None = None,
    color: Annotated[str | None, Query(max_length=200)] = None,
    label: Annotated[str | None, Query(max_length=200)] = None,
    method: Literal["pca", "umap"] = "pca",
    max_points: Annotated[int | None, Query(ge=1, le=1_000_000)] = None,
) -> Response:
    """One figure; 202 and the job's id while the projection it needs is computed."""
    run = all.store.run(id)
    given = {
        "layer": layer, "expert": expert, "signal": signal, "step": step, "before": before, "color": color,
        "label": label, "max_points": max_points,
    }  # fmt: skip
    with readable(run):
        return run_figure(all, id, name, {key: value for key, value in given.items() if value is not None}, method)


@router.get("/{id}/growth")
def family_tree(id: Id, all: ServicesDep, layer: int | None = None) -> Response:
    """Who lives, who came from whom, when and why, and what each living expert responds to."""
    with readable(all.store.run(id)):
        found = growth(all, id, layer)
    return JSON(found | {"changes": [public_event(event).model_dump() for event in found["changes"]]})
