"""One run in progress: what happens between its first event and its last."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from moescope.errors import InputError
from moescope.events import Event
from moescope.expansion import ExpansionConfig
from moescope.expansion.controller import Growth
from moescope.model import Transformer
from moescope.train import state
from moescope.train.beginning import accelerator, new_model, training_batches
from moescope.train.clock import Clock
from moescope.train.config import RunConfig
from moescope.train.objectives import AuxiliaryLosses
from moescope.train.observing import Observer
from moescope.train.optimizer import Optimizer
from moescope.train.orders import POLL, Ear, Order, Orders
from moescope.train.prepare import Progress, prepare
from moescope.train.report import started_payload
from moescope.train.schedule import due
from moescope.train.share import Share
from moescope.train.stepping import Stepper


class Run:
    """One run in progress: the model, its optimizer, the data, and how far it is."""

    def __init__(self, config: RunConfig, folder: Path, saved: state.Saved | None, progress: Progress) -> None:
        self.config, self.folder = config, folder
        self.forked = None if saved is None else saved.forked()
        self.resumed = saved is not None and self.forked is None
        self.counts = state.Counts() if saved is None else saved.begun(config)
        model, tokenizer_json = (None, None) if saved is None else saved.load()
        self.data = prepare(config, tokenizer_json, progress)
        if saved is not None and model is not None:
            saved.check_data(config, self.data)
            model = saved.fitted(model, self.data)
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
        self.growth = self._growth()
        if saved is not None and self.growth is not None:
            saved.restore_growth(self.growth, config)
        self.clock = Clock(self.counts.seconds)
        self.paused: float | None = None
        self.kept = self.counts.step if self.resumed else None
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
            growth=self.growth,
        )

    def _growth(self) -> Growth | None:
        """What changes the set of experts: by itself where `[expansion]` says so, by hand where slots are free."""
        config, model = self.config.expansion, self.model.config
        if config is None and model.num_slots == model.num_experts:
            return None
        return Growth(
            config or ExpansionConfig.by_hand(),
            self.model,
            self.optimizer,
            steps=self.config.optim.steps,
            seed=self.config.seed,
            evaluate=lambda: self.observer.held_loss(self.counts.step),
        )

    def events(self, stop: Callable[[], bool], orders: Orders = tuple) -> Iterator[Event]:
        """Every event from here to the end of the run."""
        for event in self._events(Ear(self.share, stop, orders)):
            if self.share.rank == 0:
                yield event
        self.share.any(False)  # no process leaves before what the first one writes is complete

    def _events(self, ear: Ear) -> Iterator[Event]:
        yield from self._begin()
        steps = self.config.optim.steps
        while self.counts.step < steps:
            if (yield from self._hear(ear)):
                yield from self._stop()
                return
            yield from self._step()
            yield from self._observe()
            if due(self.counts.step, self.config.checkpoint_every, steps):
                yield from self._checkpoint()
        for order in ear()[1]:
            yield self._answer(order, "The run is finished.")
        yield self._event(
            "run_finished",
            {name: getattr(self.counts, name) for name in ("loss", "eval_loss", "seconds")},
        )

    def _begin(self) -> Iterator[Event]:
        if self.resumed:
            yield self._event("run_resumed", {"from_step": self.counts.step})
            return
        payload = started_payload(self.config, self.model, self.data, self.device, self.precision, self.forked)
        yield self._event("run_started", payload)
        yield from self._observe(always=True)
        if self.forked is not None:
            yield from self._checkpoint()  # from here on it needs nothing of the run it comes from

    def _hear(self, ear: Ear) -> Generator[Event, None, bool]:
        """Do what is ordered, and wait while paused. Whether the run is to stop."""
        while True:
            stop, orders = ear()
            for order in orders:
                yield from self._obey(order)
            if stop or self.paused is None:
                self._go_on()
                return stop
            time.sleep(POLL)

    def _obey(self, order: Order) -> Iterator[Event]:
        if order.id in self.counts.by_hand:
            for kind, payload, when in self.counts.by_hand[order.id]:
                yield replace(self._event(kind, payload), time=when)
        elif order.kind in ("split", "retire"):
            yield from self._by_hand(order)
        elif order.kind == "go_on":
            waited = self._go_on()
            yield self._answer(order, "The run is not paused." if waited is None else None)
            if waited is not None:
                yield self._event("run_unpaused", {"seconds": waited})
        elif order.kind == "pause" and self.paused is not None:
            yield self._answer(order, "The run is paused already.")
        else:
            if self.kept != self.counts.step:
                yield from self._checkpoint()
            yield self._answer(order)
            if order.kind == "pause":
                self.paused = time.perf_counter()
                yield self._event("run_paused", {})

    def _go_on(self) -> float | None:
        """End a pause: how many seconds it took, which are not the run's; None where there was none."""
        if self.paused is None:
            return None
        waited = time.perf_counter() - self.paused
        self.clock.leave_out(waited)
        self.paused = None
        return waited

    def _by_hand(self, order: Order) -> Iterator[Event]:
        """Split or retire, keep what came of it, and then tell: what was told is never lost, and never done twice."""
        try:
            if self.growth is None:
                raise InputError("The model has no free expert slots: model.max_experts is not above num_experts.")
            if order.layer is None or order.expert is None:
                raise InputError(f"Which expert? An order to {order.kind} names a block and an expert.")
            change = self.growth.split if order.kind == "split" else self.growth.retire
            told = change(order.layer, order.expert, self.counts.step)
        except InputError as error:
            yield self._answer(order, str(error))
            return
        events = [*(self._event(kind, payload) for kind, payload in told), self._answer(order)]
        self.counts = replace(self.counts, by_hand={order.id: [(e.kind, e.payload, e.time) for e in events]})
        written = list(self._checkpoint())
        yield from events
        yield from written

    def _answer(self, order: Order, refused: str | None = None) -> Event:
        payload = {"id": order.id, "order": order.kind, "layer": order.layer, "expert": order.expert}
        payload |= {"done": refused is None}
        return self._event("order", payload if refused is None else payload | {"why": refused})

    def _step(self) -> Iterator[Event]:
        self.counts, told = self.step(self.counts)
        if self.growth is not None:
            told += self.growth.after_step(self.counts.step)
        for kind, payload in told:
            yield self._event(kind, payload)

    def _observe(self, always: bool = False) -> Iterator[Event]:
        """Evaluation and snapshot where they are due; the first process does them while the others wait."""
        config, step = self.config, self.counts.step
        if self.share.rank:
            return
        if always or due(step, config.eval_every, config.optim.steps):
            payload = self.observer.evaluation(step)
            self.counts = replace(self.counts, eval_loss=payload["loss"])
            yield self._event("eval", payload)
        if always or due(step, config.snapshot_every, config.optim.steps):
            path = self.observer.snapshot(step)
            yield self._event("snapshot", {"path": self._below(path), "tokens": self.data.probe.num_tokens})

    def _checkpoint(self) -> Iterator[Event]:
        self.kept = self.counts.step
        if self.share.rank:
            return
        began = time.perf_counter()
        self.counts = replace(self.counts, seconds=self.clock() if self.paused is None else self.counts.seconds)
        path = state.save(
            self.folder,
            self.counts,
            self.config,
            self.model,
            self.optimizer,
            self.data.tokenizer_json,
            self._card(),
            self.data.fingerprint,
            self.growth,
        )
        yield self._event("checkpoint", {"path": self._below(path), "seconds": time.perf_counter() - began})

    def _stop(self) -> Iterator[Event]:
        if self.kept != self.counts.step:
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
