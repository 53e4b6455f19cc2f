"""A growth that does by hand only what the loop has to be told of: a stand-in that counts what it is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from moescope.errors import InputError
from moescope.model import Transformer
from moescope.objectives.base import LayerRecord


class CountingGrowth:
    """Doubles a gradient at every step and tells how often it was asked: all of it shows in losses and events."""

    def __init__(
        self, config: Any, model: Transformer, optimizer: Any, *, steps: int, seed: int, evaluate: Callable[[], float]
    ) -> None:
        self.model, self.evaluate = model, evaluate
        self.steps = torch.zeros(2, dtype=torch.int64)
        self.asked: list[str] = []
        self.inside = False

    @contextmanager
    def watching(self, step: int) -> Iterator[None]:
        self.inside = True
        yield
        self.inside = False
        self.asked.append(f"watched {step}")

    def records(self, records: Sequence[LayerRecord]) -> tuple[LayerRecord, ...]:
        assert self.inside
        return tuple(records)

    def losses(self, records: Sequence[LayerRecord]) -> dict[str, Tensor]:
        return {"redundancy": 0.5 * records[0].routing.probs_TE.square().mean()}

    def after_backward(self, step: int, records: Sequence[LayerRecord], loss: Tensor) -> list[tuple[str, Any]]:
        assert not loss.requires_grad and not self.inside
        assert self.model.norm.weight.grad is not None
        self.model.norm.weight.grad.mul_(2.0)
        self.steps[0] += 1
        return [("drift", {"seen": int(self.steps[0]), "loss": self.evaluate()})]

    def after_step(self, step: int) -> list[tuple[str, Any]]:
        self.asked.append(f"after {step}")
        return [("acceptance", {"loss_after": self.evaluate()})] if step == 3 else []

    def split(self, layer: int, expert: int, step: int) -> list[tuple[str, Any]]:
        moe = self.model.moe[layer]
        dead = (~moe.alive_E).nonzero().flatten().tolist()
        if not dead:
            raise InputError(f"Block {layer} has no free expert slot.")
        with torch.no_grad():
            for weight in moe.bank.parameters():
                weight[dead[0]] = weight[expert]
        moe.alive_E[dead[0]] = True
        self.steps[1] += 1
        return [("expansion", {"layer": layer, "parent": expert, "child": dead[0], "count": int(self.steps[1])})]

    def retire(self, layer: int, expert: int, step: int) -> list[tuple[str, Any]]:
        self.model.moe[layer].alive_E[expert] = False
        return [("prune", {"layer": layer, "expert": expert, "why": "by hand"})]

    def tensors(self) -> dict[str, Tensor]:
        return {"steps": self.steps}

    def plain(self) -> dict[str, Any]:
        return {"splits": int(self.steps[1])}

    def restore(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        if plain["splits"] != int(tensors["steps"][1]):
            raise InputError("The growth's state does not fit together.")
        self.steps = tensors["steps"].clone()
