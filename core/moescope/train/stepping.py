"""One optimizer step: batch, forward, loss and objectives, backward, clip, update; and what it has to tell."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from moescope.errors import InputError
from moescope.model import ModelOutput, Transformer, loss
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
        with noise(config.seed, done, self.accelerator.device), self.model.keeping(self.auxiliary.needs):
            batch = batch.to(self.accelerator.device)
            output: ModelOutput = self.model(batch, done, rate.steps)
            main = loss(output, batch)
            if self.auxiliary.due:
                told.append(("calibration", self.auxiliary.calibrate(output.records)))
                counts = replace(counts, scales=self.auxiliary.scales)
            parts = self.auxiliary(output.records, main.new_zeros(()))
            self.accelerator.backward(main + sum(parts.values()))
        self.share.average(self.optimizer.parameters.values())
        norm = self._clip()
        logged = due(done + 1, config.log_every, rate.steps)
        if logged or self.accelerator.device.type == "cpu" or self._seen(done + 1):
            self._require_finite(main.detach(), norm, done + 1)
        self.optimizer.step(lr)
        counts = replace(counts, step=done + 1, tokens=counts.tokens + tokens, seconds=self.clock())
        if logged:
            values = torch.stack([value.detach() for value in (main, norm, *parts.values())]).tolist()
            counts = replace(counts, loss=values[0])
            told.append(("train", _train_payload(counts, lr, values[1], dict(zip(parts, values[2:], strict=True)))))
        if config.load_every and output.records and due(done + 1, config.load_every, rate.steps):
            told.append(("load", load_payload(output.records)))
        return counts, told

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
