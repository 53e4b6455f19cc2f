"""Checkpoints of a run: the model's folder, and beside it what exact resume needs.

A checkpoint of step n is `checkpoints/step-00000n/`: the model's own (config.json, model.safetensors, tokenizer.json),
`optimizer.safetensors` (moments by parameter name) and `run.json` (counts, configuration, fingerprint of the data);
where experts can grow also `expansion.safetensors` and `expansion.json` (windows, pairs, patience, trials).
No state of random generators is stored: what a step draws is a function of the seed and the step.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Self

import torch
from safetensors.torch import load_file, save_file

from moescope.config import dump
from moescope.errors import InputError
from moescope.expansion.controller import Growth
from moescope.files import usual_mode
from moescope.model import Transformer, load_checkpoint, save_checkpoint
from moescope.train.config import RunConfig, parse_run_config
from moescope.train.optimizer import Optimizer
from moescope.train.prepare import Prepared

CHECKPOINTS: Final = "checkpoints"
_OPTIMIZER, _RUN, _VERSION = "optimizer.safetensors", "run.json", 1
_GROWTH_TENSORS, _GROWTH = "expansion.safetensors", "expansion.json"
_STEP = re.compile(r"step-(\d{6,})")


ByHand = tuple[str, Mapping[str, Any], float]
"""Kind, payload and time of an event that an order by hand led to."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How far a run is: optimizer steps, positions seen, seconds spent, the last losses that were logged, the scale
    that calibration gave each objective, and the events of the last split or retirement by hand, by the order's id."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss: float | None = None
    eval_loss: float | None = None
    scales: Mapping[str, float] = field(default_factory=dict)
    by_hand: Mapping[str, Sequence[ByHand]] = field(default_factory=dict)


def name_of(step: int) -> str:
    return f"step-{step:06d}"


def checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run, by step."""
    found = [
        path for path in (run / CHECKPOINTS).glob("step-*") if _STEP.fullmatch(path.name) and (path / _RUN).is_file()
    ]
    return sorted(found, key=lambda path: int(path.name[5:]))


def save(
    run: Path,
    counts: Counts,
    config: RunConfig,
    model: Transformer,
    optimizer: Optimizer,
    tokenizer_json: str | None,
    card: Mapping[str, Any],
    fingerprint: str,
    growth: Growth | None = None,
) -> Path:
    """Write the checkpoint of a step, complete or not at all; then drop the oldest beyond `keep_checkpoints`."""
    threads = torch.get_num_threads()  # the order of sums depends on it
    plain = {"version": _VERSION, **asdict(counts), "threads": threads, "data": fingerprint, "config": dump(config)}

    def extra(staging: Path) -> None:
        save_file(optimizer.state(), staging / _OPTIMIZER)
        usual_mode(staging / _OPTIMIZER)
        if growth is not None:
            tensors = {
                name: value.detach().to("cpu", copy=True).contiguous() for name, value in growth.tensors().items()
            }
            save_file(tensors, staging / _GROWTH_TENSORS)
            usual_mode(staging / _GROWTH_TENSORS)
            (staging / _GROWTH).write_text(json.dumps(growth.plain()) + "\n", "utf-8")
        (staging / _RUN).write_text(json.dumps(plain, indent=2) + "\n", "utf-8")

    target = run / CHECKPOINTS / name_of(counts.step)
    save_checkpoint(target, model, tokenizer_json, card, extra=extra)
    for old in checkpoints(run)[: -config.keep_checkpoints]:
        if old != target:
            shutil.rmtree(old)
    return target


def write_json(path: Path, plain: Mapping[str, Any]) -> None:
    """Write a file that appears complete or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(json.dumps(plain, indent=2) + "\n", "utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def clear_remains(run: Path) -> None:
    """Remove what a killed process left half-written; a checkpoint that it had just moved aside is moved back."""
    for old in (run / CHECKPOINTS).glob(".step-*.old"):
        target = old.with_name(old.name[1:].split(".")[0])
        with suppress(FileNotFoundError):  # of several processes another may have been faster
            if target.exists():
                shutil.rmtree(old)
            else:
                old.rename(target)
    for partial in (run / CHECKPOINTS).glob(".step-*.partial"):
        shutil.rmtree(partial, ignore_errors=True)


@dataclass(frozen=True)
class Saved:
    """A checkpoint that a run goes on from."""

    path: Path
    counts: Counts
    config: Mapping[str, Any]
    fingerprint: str
    threads: int

    verb: ClassVar[str] = "resumed"

    @classmethod
    def find(cls, path: Path) -> Self:
        """The checkpoint at `path`, or the newest of the run at `path`. Raises `InputError` where there is none."""
        folder = path if (path / _RUN).is_file() else next(reversed(checkpoints(path)), None)
        if folder is None:
            raise InputError(f"{path} holds no checkpoint that a run could be {cls.verb} from.")
        try:
            plain = json.loads((folder / _RUN).read_text("utf-8"))
            if plain["version"] != _VERSION:
                raise InputError(f"{folder.name} is of version {plain['version']!r}; this release reads {_VERSION}.")
            counts = Counts(
                step=int(plain["step"]),
                tokens=int(plain["tokens"]),
                seconds=float(plain["seconds"]),
                loss=plain["loss"],
                eval_loss=plain["eval_loss"],
                scales={str(name): float(scale) for name, scale in plain.get("scales", {}).items()},
                by_hand={str(id): _by_hand(told) for id, told in plain.get("by_hand", {}).items()},
            )
            threads = max(1, min(int(plain["threads"]), 1024))
            return cls(folder, counts, dict(plain["config"]), str(plain["data"]), threads)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{folder.name}/{_RUN} is damaged ({error!r}), so no run can be {cls.verb} from it."
            ) from None

    def check(self, config: RunConfig) -> None:
        """Raise `InputError` naming the first setting that is not what the checkpoint was made with."""
        for key, here, there in differences(dump(config), self.as_now):
            raise InputError(
                f"{self.path.name} cannot be resumed with another configuration: {key} is {here!r}, it was {there!r}."
            )

    @property
    def as_now(self) -> Mapping[str, Any]:
        """The checkpoint's configuration; settings that its release did not have are at their defaults."""
        try:
            return dump(parse_run_config(self.config))
        except InputError:
            return self.config

    def check_data(self, config: RunConfig, data: Prepared) -> None:
        """Raise `InputError` where the data is not what the checkpoint was trained on."""
        if data.fingerprint != self.fingerprint:
            raise InputError(f"{self.path.name} cannot be resumed: the data is not what it was trained on any more.")

    def begun(self, config: RunConfig) -> Counts:
        """How far the run is."""
        return self.counts

    def fitted(self, model: Transformer, data: Prepared) -> Transformer:
        """The model to go on with."""
        return model

    def forked(self) -> Mapping[str, Any] | None:
        """Where a fork comes from, None for a run that goes on."""
        return None

    def load(self) -> tuple[Transformer, str | None]:
        """The model in training mode, and its tokenizer."""
        model, tokenizer_json, _ = load_checkpoint(self.path, dtype=None)
        return model.train(), tokenizer_json

    def restore(self, optimizer: Optimizer) -> None:
        """Put the moments back. Raises `InputError` where they do not belong to the model."""
        path = self.path / _OPTIMIZER
        try:
            state = load_file(path)
        except Exception as error:
            raise InputError(f"{self.path.name}/{_OPTIMIZER} cannot be read: {error}.") from None
        for full, value in state.items():
            kind, _, name = full.partition(".")
            weight = optimizer.parameters.get(name)
            fits = weight is not None and (kind == "step" or value.shape == weight.shape)
            if kind not in ("step", "exp_avg", "exp_avg_sq") or not fits:
                raise InputError(f"{self.path.name}/{_OPTIMIZER}: {full!r} does not belong to this model.")
        optimizer.restore(state)

    def restore_growth(self, growth: Growth, config: RunConfig) -> None:
        """Let growth go on where it was; a checkpoint from before there was growth leaves it at its start."""
        tensors, plain = self.path / _GROWTH_TENSORS, self.path / _GROWTH
        if not tensors.exists() and not plain.exists():
            return
        try:
            growth.restore(load_file(tensors), json.loads(plain.read_text("utf-8")))
        except InputError:
            raise
        except Exception as error:
            what = f"{type(error).__name__}: {error}".splitlines()[0]
            raise InputError(f"{self.path.name}: what it holds of growth is damaged ({what}).") from None


def _by_hand(told: Any) -> list[ByHand]:
    return [(str(kind), dict(payload), float(time)) for kind, payload, time in told]


def differences(here: Any, there: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(here, Mapping) and isinstance(there, Mapping):
        for name in sorted(set(here) | set(there)):
            yield from differences(here.get(name), there.get(name), f"{key}.{name}" if key else str(name))
    elif here != there:
        yield key, here, there
