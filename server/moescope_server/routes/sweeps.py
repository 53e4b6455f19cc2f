"""Sweeps: listed, started, stopped, gone on with, deleted; their race and their table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response

from moescope.errors import InputError
from moescope_server import sweeps
from moescope_server.analysis import figure_function
from moescope_server.deps import Id, JobsDep, ServicesDep, StoreDep
from moescope_server.schemas import SweepCreate, SweepStarted
from moescope_server.wire import JSON

router = APIRouter(prefix="/sweeps")

SWEEP_FIGURES = ("race", "frontier")
"""Figures that are drawn from a sweep's folder."""


@router.get("")
def list_sweeps(store: StoreDep) -> Response:
    jobs = sweeps.latest_jobs(store)
    rows = [sweeps.row(store, id, jobs) for id in sweeps.sweep_ids(store)]
    return JSON({"sweeps": rows, "presets": sweeps.presets()})


@router.post("", status_code=202)
def start_sweep(body: SweepCreate, store: StoreDep, jobs: JobsDep) -> SweepStarted:
    """Start a bundled sweep, or go on with the one of the same wishes; no job where nothing is left to do."""
    id = sweeps.plan(store, body.preset, body.seeds, body.set)
    known = sweeps.row(store, id, sweeps.latest_jobs(store))
    if known["status"] in sweeps.ACTIVE or sweeps.is_complete(known):
        return SweepStarted(sweep=id, job=known["job"])
    return SweepStarted(sweep=id, job=jobs.submit_once("sweep", {"sweep": id}).id)


@router.get("/{id}")
def one_sweep(id: Id, store: StoreDep) -> Response:
    return JSON(sweeps.detail(store, id))


@router.post("/{id}/stop")
def stop_sweep(id: Id, store: StoreDep, jobs: JobsDep) -> Response:
    known = _known(store, id)
    if known["status"] not in sweeps.ACTIVE:
        raise InputError(f"{known['title']!r} is {known['status']}: there is nothing to stop.")
    if known["job"] is None:
        raise InputError(f"{known['title']!r} is run by a command line: stop it there, with Ctrl-C.")
    jobs.cancel(known["job"])
    return JSON(_known(store, id))


@router.post("/{id}/resume", status_code=202)
def resume_sweep(id: Id, store: StoreDep, jobs: JobsDep) -> SweepStarted:
    """Go on with a sweep; cells that failed are tried again."""
    known = _known(store, id)
    if known["status"] == "damaged":
        raise InputError(known["error"])
    if known["status"] in sweeps.ACTIVE:
        raise InputError(f"{known['title']!r} is {known['status']}; it can be gone on with once it has stopped.")
    if sweeps.is_complete(known):
        raise InputError(f"{known['title']!r} is finished: there is nothing left to do.")
    return SweepStarted(sweep=id, job=jobs.submit_once("sweep", {"sweep": id}).id)


@router.delete("/{id}", status_code=204)
def delete_sweep(id: Id, store: StoreDep) -> None:
    sweeps.delete(store, id)


@router.get("/{id}/figures/race")
def race(
    id: Id,
    all: ServicesDep,
    curve: Annotated[str, Query(max_length=200)] = "loss",
    x: Literal["step", "tokens"] = "step",
) -> Response:
    from moescope.sweep.lanes import race as run_race

    folder = sweeps.sweep_folder(all.store, id)
    stamp = _stamp(folder, "events.jsonl")

    def draw() -> Any:
        with sweeps.damage_told(id):
            found = run_race(folder, curve, x)
        return figure_function("race")(found.lanes, curve=found.curve, x=found.x, unit=found.unit, note=found.note)

    return JSON(all.analysis.figure(("sweep", id, stamp, curve, x), draw))


@router.get("/{id}/figures/frontier")
def frontier(id: Id, all: ServicesDep) -> Response:
    from moescope.sweep.frontiers import frontier as sweep_frontier

    folder = sweeps.sweep_folder(all.store, id)

    def draw() -> Any:
        with sweeps.damage_told(id):
            found = sweep_frontier(folder)
        return figure_function("frontier")(found.rungs, found.ends, unit=found.unit, floor=found.floor)

    return JSON(all.analysis.figure(("frontier", id, _stamp(folder, "cell.json")), draw))


def _stamp(folder: Path, name: str) -> tuple[Any, ...]:
    """Changes when a file of that name in any cell does, or the sweep itself."""
    files = [(path, path.stat()) for path in sorted(folder.glob(f"cells/*/{name}"))]
    cells = tuple((path.parent.name, stat.st_mtime_ns, stat.st_size) for path, stat in files)
    return (folder / "sweep.json").stat().st_mtime_ns, cells


@router.get("/{id}/table.csv")
def table(id: Id, store: StoreDep) -> Response:
    """One row per finished cell, metric and layer."""
    from moescope.sweep.table import as_csv, rows

    folder = sweeps.sweep_folder(store, id)
    with sweeps.damage_told(id):
        text = as_csv(rows(folder))
    headers = {"content-disposition": f'attachment; filename="{id}.csv"'}
    return Response(text, media_type="text/csv; charset=utf-8", headers=headers)


def _known(store: StoreDep, id: str) -> dict[str, Any]:
    return sweeps.row(store, id, sweeps.latest_jobs(store))
