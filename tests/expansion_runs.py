"""A tiny model in training with growth, without the loop: what the tests of growth drive."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from moescope import ranks
from moescope.config import parse
from moescope.expansion import ExpansionConfig
from moescope.expansion.controller import Growth
from moescope.model import Batch, ModelConfig, Transformer, loss
from moescope.train.config import OptimConfig
from moescope.train.optimizer import Optimizer

VOCAB, ROWS, SEQ = 20, 4, 12
Told = list[tuple[str, dict[str, Any]]]


def batch(number: int) -> Batch:
    generator = torch.Generator().manual_seed(number)
    inputs = torch.randint(0, VOCAB, (ROWS, SEQ), generator=generator)
    valid = torch.ones(ROWS, SEQ, dtype=torch.bool)
    valid[-1, SEQ // 2 :] = False
    target = ((inputs * 3 + 1) % VOCAB).where(valid, -100)
    return Batch(inputs=inputs, valid=valid, target=target)


class Run:
    """`steps` steps; `growth`, `model` and `optimizer` lie open. `told` holds (step, kind, payload)."""

    def __init__(
        self, expansion: dict[str, Any] | None = None, *, steps: int = 20, seed: int = 0, **of_model: Any
    ) -> None:
        plain: dict[str, Any] = {"vocab_size": VOCAB, "d_model": 16, "num_layers": 2, "num_heads": 2, "d_expert": 8}
        plain |= {"num_experts": 2, "max_experts": 5, "router": "mass", "max_seq": SEQ}
        self.model = Transformer(ModelConfig(**{**plain, **of_model}), seed=seed)
        self.optimizer = Optimizer(self.model, OptimConfig(lr=0.01, weight_decay=0.3))
        self.steps, self.seed, self.done, self.evaluations = steps, seed, 0, 0
        config = parse(ExpansionConfig, {"phase": 1.0, **(expansion or {})})
        self.growth = Growth(config, self.model, self.optimizer, steps=steps, seed=seed, evaluate=self.evaluate)
        self.told: list[tuple[int, str, dict[str, Any]]] = []
        self.losses: list[float] = []

    @torch.no_grad()
    def evaluate(self) -> float:
        self.evaluations += 1
        self.model.eval()
        with ranks.alone():
            value = float(loss(self.model(batch(9999)), batch(9999)))
        self.model.train()
        return value

    def backward(self) -> tuple[Any, Tensor]:
        """Forward and backward of the next step: records and loss."""
        here, step = batch(self.done), self.done
        with torch.random.fork_rng(), self.growth.watching(step):
            torch.manual_seed(step)
            output = self.model(here, step, self.steps)
            main = loss(output, here)
            records = self.growth.records(output.records)
            extra = [value for record in records for value in record.routing.losses.values()]
            (main + sum(self.growth.losses(records).values()) + sum(extra)).backward()
        return records, main.detach()

    def step(self) -> Told:
        records, main = self.backward()
        told = self.growth.after_backward(self.done, records, main)
        self.optimizer.step(0.01)
        self.done += 1
        told = told + self.growth.after_step(self.done)
        self.losses.append(float(main))
        self.told += [(self.done, kind, payload) for kind, payload in told]
        return told

    def go(self, steps: int | None = None) -> Run:
        for _ in range(self.steps - self.done if steps is None else steps):
            self.step()
        return self

    def of(self, *kinds: str) -> list[tuple[int, dict[str, Any]]]:
        return [(step, payload) for step, kind, payload in self.told if kind in kinds]

    def alive(self) -> list[list[int]]:
        return [moe.alive_E.nonzero()[:, 0].tolist() for moe in self.model.moe.values()]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.model.state_dict().items()
        yield from self.optimizer.state().items()
        yield from self.growth.tensors().items()


def differing(one: Run, two: Run) -> list[str]:
    """Names of tensors that are not bit for bit the same in two runs."""
    a, b = dict(one.tensors()), dict(two.tensors())
    return sorted(
        [*a.keys() ^ b.keys()]
        + [name for name in a.keys() & b.keys() if not torch.equal(a[name].nan_to_num(-9), b[name].nan_to_num(-9))]
    )
