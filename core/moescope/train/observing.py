"""What is looked at between two steps: the loss on held-out data, and traces of the probe."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moescope import ranks
from moescope.model import Batch, Transformer
from moescope.train.beginning import held_batches
from moescope.train.config import RunConfig
from moescope.train.evaluate import evaluate
from moescope.train.noise import noise
from moescope.train.prepare import Prepared
from moescope.train.sampling import SameDocuments
from moescope.train.snapshot import write_snapshot
from moescope.train.state import name_of


class Observer:
    """Looks at a model in training and leaves it as it was; what is drawn is a function of the seed and the step."""

    def __init__(
        self, config: RunConfig, folder: Path, model: Transformer, data: Prepared, device: torch.device
    ) -> None:
        self.config, self.folder, self.model, self.data, self.device = config, folder, model, data, device

    @cached_property
    def held(self) -> list[Batch]:
        """The held-out batches of the run, the same at every evaluation."""
        return held_batches(self.config, self.data.model, self.data.held_out)()

    def held_loss(self, step: int) -> float:
        """Loss on the held-out batches now. Every process evaluates all of them, and hears the first one's number."""
        value = self._evaluate(self.held, step)["loss"]
        mine = torch.tensor(value if ranks.rank() == 0 else 0.0, dtype=torch.float64, device=self.device)
        return float(ranks.summed(mine))

    def evaluation(self, step: int) -> dict[str, Any]:
        """Payload of an `eval` event."""
        payload = self._evaluate(self.held, step)
        if self.data.evals:
            payload["evals"] = self._further_evaluations(payload["loss"], step)
        return payload

    def snapshot(self, step: int) -> Path:
        """Trace the probe; the trace's path."""
        path = self.folder / "snapshots" / f"{name_of(step)}.safetensors"
        write_snapshot(path, self.model, self.data, self.config, f"{self.folder.name}, step {step}")
        return path

    def _evaluate(self, batches: Sequence[Batch], step: int, kept: Sequence[Tensor] | None = None) -> dict[str, Any]:
        optim = self.config.optim
        with noise(self.config.seed, step, self.device):
            return evaluate(self.model, batches, step, optim.steps, optim.loss_from, kept)

    def _further_evaluations(self, clean: float, step: int) -> dict[str, Any]:
        """Each corrupted version of held-out items, beside the loss on the same items as they are (`clean`)."""
        config, model = self.config, self.data.model
        if model.head == "class":
            held = {name: held_batches(config, model, version)() for name, version in self.data.evals.items()}
            return {name: self._evaluate(batches, step) | {"clean": clean} for name, batches in held.items()}
        optim = config.optim
        size = config.eval_batches * optim.batch * optim.seq
        same = SameDocuments(self.data.held_out, size=size, seq=optim.seq, batch=optim.batch, label=model.label)
        clean = self._evaluate(same(self.data.held_out), step)["loss"]
        return {
            name: self._evaluate(same(version), step, same.kept(version)) | {"clean": clean}
            for name, version in self.data.evals.items()
        }
