"""Sweeps as the page sees them: what their folders say, and the job that is at work on each."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moescope.errors import InputError
from moescope.imports import import_models
from moescope.store import JobRow, NotFoundError, Store
from moescope.store.ids import is_id, new_id

if TYPE_CHECKING:
    from moescope.sweep.folder import Plan

ACTIVE = ("queued", "running")


def sweep_folder(store: Store, id: str) -> Path:
    """Where a sweep is kept. Raises `NotFoundError` where there is none."""
    path = store.home / "sweeps" / id
    if not is_id(id) or not (path / "sweep.json").is_file():
        raise NotFoundError(f"There is no sweep {id!r}.")
    return path


def sweep_ids(store: Store) -> list[str]:
    """Ids of all sweeps, the newest first: also those that the command line trains, or trained."""
    found = [path.parent for path in (store.home / "sweeps").glob("*/sweep.json") if is_id(path.parent.name)]
    return [path.name for path in sorted(found, key=lambda path: (-_made(path), path.name))]


def _made(folder: Path) -> float:
    return (folder / "sweep.json").stat().st_mtime


def latest_jobs(store: Store) -> dict[str, JobRow]:
    """The last job of every sweep that had one."""
    return {str(row.spec.get("sweep")): row for row in store.jobs(kind="sweep")}


def row(store: Store, id: str, jobs: Mapping[str, JobRow]) -> dict[str, Any]:
    """One sweep in short; a damaged one says so in `error`."""
    folder = sweep_folder(store, id)
    made = datetime.fromtimestamp(_made(folder), UTC).isoformat()
    try:
        from moescope.sweep.folder import read_plan

        return {"id": id, "created": made, **_row(read_plan(folder), jobs.get(id)), "verdicts": _verdicts(folder)}
    except DAMAGED as fault:
        error = fault if isinstance(fault, InputError) else _damage(id, fault)
        named = {"id": id, "created": made, "name": id, "title": id, "description": "", "status": "damaged"}
        empty: dict[str, Any] = {name: [] for name in ("variants", "seeds", "metrics", "cells", "notes")}
        return named | empty | {"seconds": 0, "reference": "", "job": None, "error": str(error), "verdicts": {}}


DAMAGED: Final = (InputError, ValueError, KeyError, TypeError, AttributeError, IndexError, OSError, ArithmeticError)
"""What reading a folder that somebody else wrote into may raise."""


def _damage(id: str, fault: BaseException) -> InputError:
    return InputError(f"The folder of sweep {id} is damaged ({type(fault).__name__}: {str(fault)[:200]}).")


@contextmanager
def damage_told(id: str) -> Iterator[None]:
    """Whatever a damaged folder raises is one sentence."""
    try:
        yield
    except (InputError, NotFoundError):
        raise
    except DAMAGED as fault:
        raise _damage(id, fault) from None


def detail(store: Store, id: str) -> dict[str, Any]:
    """One sweep in full: its row, the curves that can be drawn, the variants' colours, and the summary."""
    with damage_told(id):
        return _detail(store, id)


def _detail(store: Store, id: str) -> dict[str, Any]:
    from moescope.figures.race import lane_colours
    from moescope.sweep.folder import read_plan
    from moescope.sweep.frontiers import EXPERTS, LOSS
    from moescope.sweep.summaries import summary_of

    folder = sweep_folder(store, id)
    plan, jobs = read_plan(folder), latest_jobs(store)
    known = row(store, id, jobs)
    names = list(plan.config.variants)
    return known | {
        "curves": curves(plan),
        "palette": dict(zip(names, lane_colours(len(names)), strict=True)),
        "frontier": {EXPERTS, LOSS} <= set(plan.config.metrics),
        "summary": summary_of(plan, known["status"] == "running"),
    }


def curves(plan: Plan) -> list[str]:
    """What can be raced: the training loss, the held-out loss, and every further evaluation of any variant."""
    further = {name: None for cell in plan.cells for name in cell.config.get("evals") or {}}
    return ["loss", "eval_loss", *(f"evals.{name}" for name in further)]


def _row(plan: Plan, job: JobRow | None) -> dict[str, Any]:
    from moescope.sweep.states import state_of

    state = state_of(plan)
    status: str = state.status
    if job is not None and job.active:
        status = job.status
    at_work = job is not None and job.status in ACTIVE
    error = job.error if job is not None and job.status == "failed" and state.status == "stopped" else None
    return asdict(state) | {"status": status, "job": job.id if job is not None and at_work else None, "error": error}


def _verdicts(folder: Path) -> dict[str, int]:
    """How many claims hold, do not hold, or are undecided so far, as summary.json has it."""
    try:
        claims = json.loads((folder / "summary.json").read_text("utf-8"))["claims"]
        return dict(Counter(str(claim["verdict"]) for claim in claims))
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def presets() -> list[dict[str, Any]]:
    """The bundled sweeps. `id` is where one is kept that is started as it is."""
    from moescope.sweep.file import folder_name, read_sweep, sweep_names

    made = []
    for name in sweep_names():
        file = read_sweep(name)
        config = file.config
        variants = [
            {"name": variant, "label": config.label(variant), "description": config.variants[variant].description}
            for variant in config.variants
        ]
        words = {"title": config.title, "description": config.description, "seconds": config.seconds}
        counts = {"seeds": config.seeds, "cells": len(variants) * len(config.seeds), "claims": len(config.claims)}
        made.append({"name": name, "id": folder_name(file, {}, None), **words, "variants": variants, **counts})
    return made


def plan(store: Store, preset: str, seeds: Sequence[int] | None, set: Mapping[str, Any]) -> str:
    """Make the folder of a bundled sweep and return its id; the same wishes give the same one, as on the command line.

    Raises `InputError` for settings that cannot be run.
    """
    from moescope.sweep.file import folder_name, read_sweep, sweep_names
    from moescope.train.preset import parse_override

    if preset not in sweep_names():
        raise InputError(f"There is no sweep {preset!r} to start; there are {', '.join(sweep_names())}.")
    import_models()
    from moescope.sweep.runner import plan_sweep

    file = read_sweep(preset)
    values = dict(
        parse_override(f"{key}={value}") if isinstance(value, str) else (key, value) for key, value in set.items()
    )
    chosen = None if seeds is None or tuple(seeds) == file.config.seeds else tuple(seeds)
    id = folder_name(file, values, chosen)
    job = latest_jobs(store).get(id)
    folder = store.home / "sweeps" / id
    if (job is None or not job.active) and not _is_worked_on(folder):
        plan_sweep(file, folder, set=values, seeds=chosen)
    return id


def _is_worked_on(folder: Path) -> bool:
    from moescope.sweep.folder import is_held

    return is_held(folder / ".lock")


def is_complete(row: Mapping[str, Any]) -> bool:
    """Whether nothing is left to do: no cell is open, and none has failed."""
    return all(cell["status"] == "finished" for cell in row["cells"])


def delete(store: Store, id: str) -> None:
    """Delete a sweep with all its runs. Refused while it is worked on."""
    folder = sweep_folder(store, id)
    known = row(store, id, latest_jobs(store))
    if known["status"] in ACTIVE or _is_worked_on(folder):
        raise InputError(f"{known['title'] or id!r} is {known['status']}; stop it before deleting it.")
    if folder.is_symlink():
        folder.unlink()  # what it leads to is not the home's
        return
    doomed = store.staging / new_id("deleted")
    folder.replace(doomed)
    shutil.rmtree(doomed)
