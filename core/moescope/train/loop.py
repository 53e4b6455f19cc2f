"""Training, told as events."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from moescope import ranks
from moescope.config import dump
from moescope.errors import InputError
from moescope.events import Event
from moescope.model import Transformer
from moescope.train import state
from moescope.train.beginning import accelerator, new_model, training_batches
from moescope.train.clock import Clock
from moescope.train.config import RunConfig
from moescope.train.objectives import AuxiliaryLosses
from moescope.train.observing import Observer
from moescope.train.optimizer import Optimizer
from moescope.train.prepare import Progress, prepare
from moescope.train.report import started_payload
from moescope.train.schedule import due
from moescope.train.share import Share
from moescope.train.stepping import Stepper


def train(
    config: RunConfig,
    folder: str | Path,
    *,
    resume: str | Path | None = None,
    stop: Callable[[], bool] = lambda: False,
    progress: Progress | None = None,
) -> Iterator[Event]:
    """Train in `folder`, yielding events as they happen; the run goes on while the iterator is read.

    resume:   a checkpoint of this run, or the run's folder (its newest checkpoint); on a CPU the losses
              that follow are bit for bit those of a run that was never stopped (the number of threads is put back too).
    stop:     asked before every step; once true, a checkpoint is written and the run ends with `run_stopped`.
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
    saved = None if resume is None else state.find(Path(resume))
    if saved is not None:
        saved.check(config)
    elif state.checkpoints(folder):
        raise InputError(f"{folder.name} already holds a run: resume it, or train in another folder.")
    return _train(config, folder, saved, stop, progress or (lambda stage: None))


def _train(
    config: RunConfig, folder: Path, saved: state.Saved | None, stop: Callable[[], bool], progress: Progress
) -> Iterator[Event]:
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads or (saved.threads if saved is not None else threads))
    try:
        run = Run(config, folder, saved, progress)
        if ranks.rank() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            state.clear_remains(folder)
            state.write_json(folder / "config.json", dump(config))
        yield from run.events(stop)
    finally:
        torch.set_num_threads(threads)


class Run:
    """One run in progress: the model, its optimizer, the data, and how far it is."""

    def __init__(self, config: RunConfig, folder: Path, saved: state.Saved | None, progress: Progress) -> None:
        self.config, self.folder = config, folder
        self.resumed = saved is not None
        self.counts = saved.counts if saved is not None else state.Counts()
        model, tokenizer_json = saved.load() if saved is not None else (None, None)
        self.data = prepare(config, tokenizer_json, progress)
        if saved is not None:
            saved.check_data(self.data.fingerprint)
        progress("building the model")
        device, self.precision = accelerator(config)
        self.device: torch.device = device.device
        raw = model or new_model(config, self.data)
        # no wrapper: gradients are averaged here, after the backward pass, as the losses sum over ranks within it
        self.model: Transformer = device.prepare_model(raw, evaluation_mode=True)
        self.share = Share.of(config.optim.batch)
        self.optimizer = Optimizer(self.model, config.optim)
        if saved is not None:
            saved.restore(self.optimizer)
        self.observer = Observer(config, folder, self.model, self.data, self.device)
        self.clock = Clock(self.counts.seconds)
        self.step = Stepper(
            config=config,
            model=self.model,
            optimizer=self.optimizer,
            batches=training_batches(config, self.data),
            auxiliary=AuxiliaryLosses(config, self.counts.scales),
            share=self.share,
            accelerator=device,
            clock=self.clock,
            folder=folder,
        )

    def events(self, stop: Callable[[], bool]) -> Iterator[Event]:
        """Every event from here to the end of the run."""
        for event in self._events(stop):
            if self.share.rank == 0:
                yield event
        self.share.any(False)  # no process leaves before what the first one writes is complete

    def _events(self, stop: Callable[[], bool]) -> Iterator[Event]:
        steps = self.config.optim.steps
        if self.resumed:
            yield self._event("run_resumed", {"from_step": self.counts.step})
        else:
            payload = started_payload(self.config, self.model, self.data, self.device, self.precision)
            yield self._event("run_started", payload)
            yield from self._observe()
        while self.counts.step < steps:
            if self.share.any(stop()):
                yield from self._stop()
                return
            yield from self._step()
            yield from self._observe()
            if due(self.counts.step, self.config.checkpoint_every, steps):
                yield from self._checkpoint()
        yield self._event(
            "run_finished",
            {name: getattr(self.counts, name) for name in ("loss", "eval_loss", "seconds")},
        )

    def _step(self) -> Iterator[Event]:
        self.counts, told = self.step(self.counts)
        for kind, payload in told:
            yield self._event(kind, payload)

    def _observe(self) -> Iterator[Event]:
        """Evaluation and snapshot where they are due; the first process does them while the others wait."""
        config, step = self.config, self.counts.step
        if self.share.rank:
            return
        if due(step, config.eval_every, config.optim.steps):
            payload = self.observer.evaluation(step)
            self.counts = replace(self.counts, eval_loss=payload["loss"])
            yield self._event("eval", payload)
        if due(step, config.snapshot_every, config.optim.steps):
            path = self.observer.snapshot(step)
            yield self._event("snapshot", {"path": self._below(path), "tokens": self.data.probe.num_tokens})

    def _checkpoint(self) -> Iterator[Event]:
        if self.share.rank:
            return
        began = time.perf_counter()
        self.counts = replace(self.counts, seconds=self.clock())
        path = state.save(
            self.folder,
            self.counts,
            self.config,
            self.model,
            self.optimizer,
            self.data.tokenizer_json,
            self._card(),
            self.data.fingerprint,
        )
        yield self._event("checkpoint", {"path": self._below(path), "seconds": time.perf_counter() - began})

    def _stop(self) -> Iterator[Event]:
        newest = next(reversed(state.checkpoints(self.folder)), None)
        if newest is None or newest.name != state.name_of(self.counts.step):
            yield from self._checkpoint()
        path = self.folder / state.CHECKPOINTS / state.name_of(self.counts.step)
        yield self._event("run_stopped", {"path": self._below(path)})

    def _card(self) -> Mapping[str, Any]:
        return {
            "title": f"{self.folder.name}, step {self.counts.step}",
            "run": self.folder.name,
            "step": self.counts.step,
            "steps": self.config.optim.steps,
            "tokens_seen": self.counts.tokens,
            "loss": self.counts.loss,
            "eval_loss": self.counts.eval_loss,
            "data": self.config.data.spec,
        }

    def _below(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _event(self, kind: str, payload: Mapping[str, Any]) -> Event:
        return Event(run=self.folder.name, step=self.counts.step, kind=kind, payload=payload, time=time.time())
