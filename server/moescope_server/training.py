"""A training run that the store hears of: the same for a job and for the command line."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from moescope.errors import InputError
from moescope.events import Event
from moescope.imports import import_models
from moescope.store import CheckpointRow, OrderRow, RunRow, Store
from moescope_server.starting import FORKED, forked


class CancelledError(BaseException):
    """Raised in the main thread of a job that was told to end. Not an `Exception`: nothing else should catch it."""


class Report(Protocol):
    """Told how far the work is; `progress` is in 0..1."""

    def __call__(self, stage: str, progress: float | None = None, seconds_left: float | None = None) -> None: ...


def can_resume(store: Store, run: RunRow) -> None:
    """Raise `InputError` if the run is going on, is complete, or is not this home's own.

    One that has no checkpoint begins again from where it began.
    """
    if run.active:
        raise InputError(f"{run.name!r} is {run.status}; it can be resumed once it has stopped.")
    if run.status == "finished":
        raise InputError(f"{run.name!r} is finished: there is nothing left to do.")
    if run.job is None:
        raise InputError(f"{run.name!r} was only watched: the program that trained it can train it again.")


def require_same(run: RunRow, preset: str, overrides: Mapping[str, Any]) -> None:
    """Raise `InputError`, naming the first setting, if the run is of another configuration than the one named."""
    import_models()
    from moescope.config import dump
    from moescope.train.config import load_run_config

    named = _flat(dump(load_run_config(preset, overrides)))
    was = _flat(run.config)
    for key in sorted(named.keys() | was.keys()):
        if named.get(key) != was.get(key):
            there, here = was.get(key), named.get(key)
            raise InputError(f"{run.id} is resumed as it was: {key} is {there!r} there, and {here!r} in what you gave.")


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def follow(store: Store, run: RunRow, *, resume: bool, stop: Callable[[], bool], report: Report) -> dict[str, Any]:
    """Train, take orders, and write down every event as it happens.

    resume: from the newest checkpoint; a run without one begins again where it began. An order counts as carried out
    once its `order` event is in the log, so one that was not answered when the process died is given again.
    Returns how the run ended; a failure is written down and raised.
    """
    from moescope.train import state
    from moescope.train.allocator import keep_freed_memory
    from moescope.train.config import parse_run_config
    from moescope.train.loop import train
    from moescope.train.orders import Order

    keep_freed_memory()
    folder = store.run_folder(run.id)
    ended: dict[str, Any] = {"run": run.id, "finished": False}
    start = int(run.fork["step"]) if run.fork else 0
    step = run.step if resume else start

    def prepare(stage: str) -> None:
        report(stage)
        if stop():
            raise CancelledError

    def orders() -> list[Order]:
        return [Order(row.id, row.kind, row.layer, row.expert) for row in store.orders.open(run.id)]

    try:
        prepare("preparing")
        config = parse_run_config(run.config)
        state.clear_remains(folder)  # a checkpoint that was just being replaced is put back
        begun: dict[str, Any] = {"resume": folder} if resume and state.checkpoints(folder) else {}
        if not begun:
            _begin_again(store, run, start)
            begun = {"fork": forked(folder)}
        clock = Clock(config.optim.steps)
        told: list[Event] = []
        for event in train(config, folder, **begun, stop=stop, orders=orders, progress=prepare):
            told.append(event)
            if event.payload.get("why") == "by hand":
                continue  # what an order led to is written with the order's answer: both or neither
            record(store, run, told)
            step, told = event.step, []
            if event.kind == "run_unpaused":
                clock = Clock(config.optim.steps)  # the wait says nothing of the pace
            report("paused" if event.kind == "run_paused" else "training", *clock(step))
            if event.kind in ("run_finished", "run_stopped"):
                ended |= {"finished": event.kind == "run_finished", "step": step, **event.payload}
    except CancelledError:
        store.append(Event(run=run.id, step=step, kind="run_stopped", payload={"path": None}))
    except BaseException as error:
        text = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        store.append(Event(run=run.id, step=step, kind="run_failed", payload={"error": text.strip()[:1000]}))
        raise
    return ended


def _begin_again(store: Store, run: RunRow, start: int) -> None:
    """A run that died before its first checkpoint takes back what it said: readers forget what came after `start`."""
    if store.events_after(0, run.id, limit=1):
        store.append(Event(run=run.id, step=start, kind="run_resumed", payload={"from_step": start}))


def record(store: Store, run: RunRow, events: Sequence[Event]) -> None:
    """Append events of a run. What they say was written is known to the store before anyone reads of it."""
    with store.database.transaction():
        for event in events:
            _know(store, run, event)
            if event.kind == "run_started" and run.fork:
                event = replace(event, payload={**event.payload, "forked": dict(run.fork)})  # with the id it has here
            if event.kind == "run_finished":
                store.append_many([_too_late(order, event.step) for order in store.orders.open(run.id)])
            store.append(event)


def _know(store: Store, run: RunRow, event: Event) -> None:
    """The rows of the files that an event tells of."""
    step, name = event.step, f"{run.name}, step {event.step}"
    if event.kind == "snapshot":
        path = store.run_folder(run.id) / event.payload["path"]
        store.add_trace(path, name, "run", id=f"{run.id}-s{step}", run=run.id, step=step)
    if event.kind == "checkpoint":
        path = store.run_folder(run.id) / event.payload["path"]
        store.add_checkpoint(path, name, "run", id=f"{run.id}-c{step}", run=run.id, step=step)
        for row in store.database.all(CheckpointRow, run=run.id):
            if not Path(row.path).exists():  # the trainer keeps only the newest
                store.database.delete(CheckpointRow, row.id)
        if run.fork:
            shutil.rmtree(store.run_folder(run.id) / FORKED, ignore_errors=True)  # it has one of its own now


def _too_late(order: OrderRow, step: int) -> Event:
    payload = {"id": order.id, "order": order.kind, "layer": order.layer, "expert": order.expert}
    payload |= {"done": False, "why": "The run is finished."}
    return Event(run=order.run, step=step, kind="order", payload=payload)


class Clock:
    """Share of the steps that are done, and seconds left at the pace since the first step seen here."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.first: tuple[int, float] | None = None

    def __call__(self, step: int) -> tuple[float, float | None]:
        now = time.monotonic()
        if self.first is None:
            self.first = step, now
        done, elapsed = step - self.first[0], now - self.first[1]
        left = (self.steps - step) * elapsed / done if done and elapsed > 1 else None
        return step / self.steps, left
