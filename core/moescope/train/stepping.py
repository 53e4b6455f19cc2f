"""One optimizer step: batch, forward, loss and objectives, backward, growth, clip, update; and what it has to tell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from moescope.errors import InputError
from moescope.expansion.controller import Growth
from moescope.model import Batch, ModelOutput, Transformer, loss
from moescope.objectives.base import LayerRecord
from moescope.train.clock import Clock
from moescope.train.config import RunConfig
from moescope.train.noise import noise
from moescope.train.objectives import AuxiliaryLosses
from moescope.train.optimizer import Optimizer
from moescope.train.report import load_payload
from moescope.train.sampling import Batches
from moescope.train.schedule import due, learning_rate
from moescope.train.share import Share
from moescope.train.state import Counts, checkpoints

if TYPE_CHECKING:
    from accelerate import Accelerator

Told = tuple[str, Mapping[str, Any]]
"""Kind and payload of an event."""


@dataclass(frozen=True)
class Stepper:
    """All that a step works with; what changes from step to step beside the model is in `Counts`."""

    config: RunConfig
    model: Transformer
    optimizer: Optimizer
    batches: Batches
    auxiliary: AuxiliaryLosses
    share: Share
    accelerator: Accelerator
    clock: Clock
    folder: Path
    growth: Growth | None = None

    def __call__(self, counts: Counts) -> tuple[Counts, list[Told]]:
        """Do the step after `counts`; the counts then, and what it has to tell, in order.

        Raises `InputError` where the loss or the gradient is not finite; the weights are then as they were.
        """
        config, done = self.config, counts.step
        rate = config.optim
        lr = learning_rate(done, peak=rate.lr, warmup=rate.warmup, steps=rate.steps, final=rate.final_lr)
        whole = self.batches(done)
        tokens = int(whole.valid.sum())
        batch = self.share(whole).scored_from(max(rate.loss_from, self.model.causal_from))
        told: list[Told] = []
        with noise(config.seed, done, self.accelerator.device):
            main, parts, records, calibration = self._backward(batch.to(self.accelerator.device), done)
        if calibration is not None:
            told.append(("calibration", calibration))
            counts = replace(counts, scales=self.auxiliary.scales)
        self.share.average(self.optimizer.parameters.values())
        loads = config.load_every and records and due(done + 1, config.load_every, rate.steps)
        load = load_payload(records) if loads else None  # growth may change who is alive
        grown = [] if self.growth is None else self.growth.after_backward(done, records, main)
        norm = self._clip()
        logged = due(done + 1, config.log_every, rate.steps)
        if logged or self.accelerator.device.type == "cpu" or self._seen(done + 1):
            self._require_finite(main, norm, done + 1)
        self.optimizer.step(lr)
        counts = replace(counts, step=done + 1, tokens=counts.tokens + tokens, seconds=self.clock())
        if logged:
            values = torch.stack([value.detach() for value in (main, norm, *parts.values())]).tolist()
            counts = replace(counts, loss=values[0])
            told.append(("train", _train_payload(counts, lr, values[1], dict(zip(parts, values[2:], strict=True)))))
        if load is not None:
            told.append(("load", load))
        return counts, told + grown

    def _backward(
        self, batch: Batch, done: int
    ) -> tuple[Tensor, dict[str, Tensor], Sequence[LayerRecord], dict[str, Any] | None]:
        """Loss (detached), what is added to it, the layers' records, and the payload of `calibration` where it was due.

        The gradients are this process's.
        """
        calibration, growth = None, self.growth
        with self.model.keeping(self.auxiliary.needs), growth.watching(done) if growth else nullcontext():
            output: ModelOutput = self.model(batch, done, self.config.optim.steps)
            main = loss(output, batch)
            records = growth.records(output.records) if growth else output.records
            if self.auxiliary.due:
                calibration = self.auxiliary.calibrate(records)
            parts = self.auxiliary(records, main.new_zeros(()))
            for name, value in (growth.losses(records) if growth else {}).items():
                parts[name] = parts[name] + value if name in parts else value
            self.accelerator.backward(main + sum(parts.values()))
        return main.detach(), parts, records, calibration

    def _clip(self) -> Tensor:
        """Norm of the whole gradient, before it is clipped."""
        weights = list(self.optimizer.parameters.values())
        norm = torch.nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
        if self.config.optim.clip:
            torch.nn.utils.clip_grads_with_norm_(weights, self.config.optim.clip, norm)
        return norm

    def _seen(self, step: int) -> bool:
        """Whether what this step makes of the weights is evaluated or kept."""
        config, steps = self.config, self.config.optim.steps
        return any(
            due(step, every, steps) for every in (config.eval_every, config.snapshot_every, config.checkpoint_every)
        )

    def _require_finite(self, main: Tensor, norm: Tensor, step: int) -> None:
        values = {"loss": main.item(), "gradient's norm": norm.item()}
        bad = [f"{name} became {value}" for name, value in values.items() if not math.isfinite(value)]
        if not bad:
            return
        newest = next(reversed(checkpoints(self.folder)), None)
        left = f"the newest checkpoint, {newest.name}, is untouched" if newest else "no checkpoint had been written"
        raise InputError(f"The {bad[0]} at step {step}, so the run ended; {left}. A lower optim.lr may help.")


def _train_payload(counts: Counts, lr: float, norm: float, objectives: Mapping[str, float]) -> dict[str, Any]:
    return {
        "loss": counts.loss,
        "objectives": objectives,
        "lr": lr,
        "grad_norm": norm,
        "tokens": counts.tokens,
        "seconds": counts.seconds,
    }
