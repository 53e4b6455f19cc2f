"""Training, told as events."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from moescope import ranks
from moescope.config import dump
from moescope.errors import InputError
from moescope.events import Event
from moescope.train import state
from moescope.train.config import RunConfig
from moescope.train.forking import Fork
from moescope.train.orders import Orders
from moescope.train.prepare import Progress
from moescope.train.run import Run


def train(
    config: RunConfig,
    folder: str | Path,
    *,
    resume: str | Path | None = None,
    fork: str | Path | None = None,
    stop: Callable[[], bool] = lambda: False,
    orders: Orders = tuple,
    progress: Progress | None = None,
) -> Iterator[Event]:
    """Train in `folder`, yielding events as they happen; the run goes on while the iterator is read.

    resume:   a checkpoint of this run, or the run's folder (its newest checkpoint); on a CPU the losses
              that follow are bit for bit those of a run that was never stopped (the number of threads is put back too).
    fork:     a checkpoint of another run, or that run's folder: weights, moments and steps go on from there under
              `config`, whose model must be the same but for options of its router (`moescope.train.forking`).
    stop:     asked before every step; once true, a checkpoint is written and the run ends with `run_stopped`.
    orders:   asked before every step, and four times a second while paused; one `order` event answers each.
    progress: called with the name of each stage before the first step.

    `folder` gets config.json, checkpoints/step-NNNNNN/, snapshots/step-NNNNNN.safetensors, each complete or not at all.
    Raises `InputError` for data that does not fit, a configuration other than the checkpoint's, and a loss that is not
    finite (checkpoints written before stay).

    Under `torchrun` every process calls this with the same arguments: each takes its rows of the global batch, what is
    taken from the batch is summed (`moescope.ranks`), gradients are averaged, and the losses are those of one process
    with the same batch, to float32's rounding. The first process writes everything and yields the events; the others
    yield nothing.
    """
    folder = Path(folder)
    saved = _origin(folder, resume, fork)
    if saved is not None:
        saved.check(config)
    return _train(config, folder, saved, stop, orders, progress or (lambda stage: None))


def _origin(folder: Path, resume: str | Path | None, fork: str | Path | None) -> state.Saved | None:
    if resume is not None and fork is not None:
        raise InputError("A run is either resumed or forked from another one, not both.")
    if resume is None and state.checkpoints(folder):
        raise InputError(f"{folder.name} already holds a run: resume it, or train in another folder.")
    state.clear_remains(folder)
    if resume is not None:
        return state.Saved.find(Path(resume))
    return None if fork is None else Fork.find(Path(fork))


def _train(
    config: RunConfig,
    folder: Path,
    saved: state.Saved | None,
    stop: Callable[[], bool],
    orders: Orders,
    progress: Progress,
) -> Iterator[Event]:
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads or (saved.threads if saved is not None else threads))
    try:
        run = Run(config, folder, saved, progress)
        if ranks.rank() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            state.write_json(folder / "config.json", dump(config))
        yield from run.events(stop, orders)
    finally:
        torch.set_num_threads(threads)
