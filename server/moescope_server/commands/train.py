"""`moescope train`: a run in the foreground, of which the page hears like of any other."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from moescope.errors import InputError
from moescope.store import JobRow, RunRow, Store
from moescope_server.commands.output import open_store, print_json, progress_bar
from moescope_server.commands.signals import stop_on_signal
from moescope_server.jobs import JobRunner, begin_here
from moescope_server.starting import create_run, plan_run
from moescope_server.training import Report, can_resume, follow, require_same
from moescope_server.worker import JobReport, finish


def train(
    preset: str | None,
    set: list[str],
    *,
    resume: str | None,
    fork: str | None,
    name: str | None,
    home: Path | None,
    json: bool,
) -> None:
    """Train a preset or a TOML file, go on with a run, or go on from a checkpoint as a new run. Raises `InputError`."""
    if preset is None and resume is None and fork is None:
        raise InputError("Give a preset (or a TOML file) to train, or a run to --resume or --fork.")
    if resume is not None and fork is not None:
        raise InputError("--resume goes on with a run, --fork begins another one from it: give one of them.")
    if resume is not None and (name or (set and preset is None)):
        raise InputError("A run is resumed as it was: --name, and --set without a preset, do not go with --resume.")
    store = open_store(home)
    try:
        if resume is not None:
            run, job = _old(store, resume, preset, set)
        else:
            run, job = _new(store, preset, set, fork, name)
        ended = _train_here(store, run, job, resume=resume is not None)
    finally:
        store.close()
    if json:
        print_json(ended)
        return
    loss = f", loss {ended['loss']:.4g}" if isinstance(ended.get("loss"), float) else ""
    print(f"{run.id}: {'finished' if ended['finished'] else 'stopped'} at step {ended.get('step', run.step)}{loss}")
    if not ended["finished"]:
        print(f"moescope train --resume {run.id} goes on with it.", file=sys.stderr)


def _new(store: Store, preset: str | None, set: list[str], fork: str | None, name: str | None) -> tuple[RunRow, JobRow]:
    from moescope.train.preset import parse_override

    wanted = plan_run(store, preset, dict(parse_override(item) for item in set), fork)
    with store.database.transaction():
        return _begin(store, create_run(store, wanted, name), resume=False)


def _begin(store: Store, run: RunRow, *, resume: bool) -> tuple[RunRow, JobRow]:
    """A job that this process does; its row lets the page stop it and a server bury it."""
    job = begin_here(store, "train", {"run": run.id, "resume": resume})
    store.database.update(RunRow, run.id, job=job.id, status="queued", error=None, orphan=False)
    return store.run(run.id), job


def _old(store: Store, id: str, preset: str | None, set: list[str]) -> tuple[RunRow, JobRow]:
    from moescope.train.preset import parse_override

    JobRunner(store).bury_dead()  # a run that was killed outright could not say so, and perhaps no server watched
    run = store.run(id)
    can_resume(store, run)
    if preset is not None:
        require_same(run, preset, dict(parse_override(item) for item in set))
    with store.database.transaction():
        can_resume(store, store.run(id))
        return _begin(store, run, resume=True)


def _train_here(store: Store, run: RunRow, job: JobRow, *, resume: bool) -> dict[str, Any]:
    """Do what a train job does, in this process."""
    steps = int(run.config["optim"]["steps"])
    try:
        with stop_on_signal() as stop, progress_bar(steps) as bar:
            ended = follow(store, run, resume=resume, stop=stop, report=_both(JobReport(store, job.id), bar))
    except BaseException as error:
        finish(store, job.id, "failed", error=str(error) or type(error).__name__)
        raise
    finish(store, job.id, "done" if ended["finished"] else "cancelled", result=ended)
    return ended


def _both(first: Report, second: Report) -> Report:
    def report(stage: str, progress: float | None = None, seconds_left: float | None = None) -> None:
        first(stage, progress, seconds_left)
        second(stage, progress, seconds_left)

    return report
