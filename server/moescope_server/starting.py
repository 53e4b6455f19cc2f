"""What a new run will be: its configuration, and the checkpoint that it goes on from if it is a fork."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moescope.errors import InputError
from moescope.files import staged
from moescope.imports import import_models
from moescope.store import CheckpointRow, NotFoundError, RunRow, Store
from moescope.store.ids import new_id

if TYPE_CHECKING:
    from moescope.train.config import RunConfig

FORKED: Final = "forked"
"""Folder of a run that holds the checkpoint it was forked from, until it has one itself: the other run may prune."""


@dataclass(frozen=True)
class Wanted:
    """A run that could be started. `fork` and `fork_step`: the checkpoint it goes on from, and its step."""

    config: RunConfig
    preset: str
    title: str
    fork: CheckpointRow | None = None
    fork_step: int = 0


def plan_run(store: Store, preset: str | None, overrides: Mapping[str, Any], fork: str | None = None) -> Wanted:
    """What starting would do; nothing is started.

    preset: a bundled one or a TOML file; a fork may do without, and has the settings of the run it comes from.
    fork: a checkpoint, or a run, whose newest it is. Raises `InputError` for a configuration that does not fit.
    """
    import_models()
    from moescope.train.config import load_run_config
    from moescope.train.prepare import corpus_of
    from moescope.train.preset import read_preset

    if fork is not None:
        return _plan_fork(store, _checkpoint(store, fork), preset, overrides)
    if preset is None:
        raise InputError("Give a preset to train.")
    card, config = read_preset(preset), load_run_config(preset, overrides)
    corpus_of(config)
    return Wanted(config, card.name, card.title)


def _plan_fork(store: Store, row: CheckpointRow, preset: str | None, overrides: Mapping[str, Any]) -> Wanted:
    from moescope.train.config import parse_run_config
    from moescope.train.forking import Fork
    from moescope.train.prepare import corpus_of
    from moescope.train.preset import override, read_preset

    saved = Fork.find(Path(row.path))
    source = store.run(row.run) if row.run is not None else None
    if preset is None:
        values, name = saved.config, source.preset if source is not None else ""
    else:
        card = read_preset(preset)
        values, name = card.config, card.name
    config = parse_run_config(override(values, overrides))
    saved.check(config)
    corpus_of(config)
    step = saved.counts.step
    return Wanted(config, name, f"{source.name if source is not None else row.name}, from step {step}", row, step)


def _checkpoint(store: Store, name: str) -> CheckpointRow:
    """A checkpoint by its id, or the newest one of a run. Raises `NotFoundError`."""
    try:
        return store.checkpoint(name)
    except NotFoundError:
        pass
    try:
        run = store.run(name)
    except NotFoundError:
        raise NotFoundError(f"There is no checkpoint and no run {name!r} to go on from.") from None
    rows = sorted(store.database.all(CheckpointRow, run=run.id), key=lambda row: row.step or 0)
    if not rows:
        raise InputError(f"{run.name!r} has no checkpoint to go on from.")
    return rows[-1]


def create_run(store: Store, wanted: Wanted, name: str | None) -> RunRow:
    """The row of the run, queued; of a fork, its checkpoint is kept with it."""
    from moescope.config import dump

    title = name or wanted.title
    id = new_id(title)
    fork: dict[str, Any] | None = None
    if wanted.fork is not None:
        fork = {"run": wanted.fork.run, "checkpoint": wanted.fork.id, "step": wanted.fork_step}
        _keep(Path(wanted.fork.path), store.run_folder(id) / FORKED / Path(wanted.fork.path).name)
    return store.add_run(title, wanted.preset, dump(wanted.config), steps=wanted.config.optim.steps, id=id, fork=fork)


def forked(folder: Path) -> Path | None:
    """The checkpoint that the run in `folder` was forked from."""
    return next(iter(sorted((folder / FORKED).glob("*"))), None)


def _keep(source: Path, target: Path) -> None:
    """The files of a checkpoint, which are never changed in place, under a second name; copied where that cannot be."""
    try:
        with staged(target) as work:
            for file in (path for path in source.iterdir() if path.is_file()):
                try:
                    os.link(file, work / file.name)
                except FileNotFoundError:
                    raise
                except OSError:
                    shutil.copyfile(file, work / file.name)
    except FileNotFoundError:
        raise InputError(
            f"The checkpoint {source.name} has just been replaced by a newer one; fork from that."
        ) from None
