"""Routers under test: every registry entry with its defaults, and with each option that changes what it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from moescope.config import parse
from moescope.routers import ROUTERS
from moescope.routers.base import Router, RouterContext, Routing

_COUNTS = ("k", "max_k", "target_k")


@dataclass(frozen=True)
class Case:
    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def build(self, d_model: int = 12, num_experts: int = 6, *, seed: int = 0, scale: float = 40.0) -> Router:
        """The router with weights of N(0, (0.02 scale)²), so that its decisions are clear, not near-ties."""
        kind = ROUTERS[self.name]
        router = kind(parse(kind.Config, self.options), d_model, num_experts)
        router.reset(torch.Generator().manual_seed(seed))
        with torch.no_grad():
            router.weight.mul_(scale)
        return router

    def fit(self, num_experts: int) -> Case:
        """The same case with every count of experts at most `num_experts`."""
        defaults = {item.name: item.default for item in fields(ROUTERS[self.name].Config)}
        counts = {**{name: defaults[name] for name in _COUNTS if name in defaults}, **self.options}
        fitted = {
            name: min(value, num_experts) for name, value in counts.items() if name in _COUNTS and value is not None
        }
        return Case(self.name, {**self.options, **fitted})

    def __str__(self) -> str:
        return "-".join([self.name, *(f"{key}={value}" for key, value in self.options.items())])


EXTRA: Sequence[Case] = (
    Case("topk_softmax", {"k": 1}),
    Case("topk_softmax", {"k": 5}),
    Case("frozen", {"k": 1}),
    Case("switch", {"capacity_factor": None}),
    Case("switch", {"capacity_factor": 0.5}),
    Case("switch", {"capacity_factor": 1.0, "drop": "priority"}),
    Case("switch", {"capacity_factor": None, "drop": "priority"}),
    Case("top_p", {"p": 0.9}),
    Case("top_p", {"p": 1.0}),
    Case("top_p", {"p": 0.9, "max_k": 2}),
    Case("top_p", {"renormalise": False}),
    Case("top_p", {"target_k": 2.5}),
    Case("expert_choice", {"capacity_factor": 1.0}),
    Case("expert_choice", {"capacity_factor": 0.6}),
)
CASES: tuple[Case, ...] = (*(Case(name) for name in ROUTERS), *EXTRA)


def context(
    batch: int,
    seq: int,
    num_experts: int,
    *,
    valid_T: Tensor | None = None,
    alive_E: Tensor | None = None,
    training: bool = False,
    max_seq: int | None = None,
) -> RouterContext:
    return RouterContext(
        batch=batch,
        seq=seq,
        valid_T=torch.ones(batch * seq, dtype=torch.bool) if valid_T is None else valid_T,
        alive_E=torch.ones(num_experts, dtype=torch.bool) if alive_E is None else alive_E,
        training=training,
        max_seq=max_seq,
    )


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dense(routing: Routing, slots_TK: Tensor) -> Tensor:
    """`slots_TK` (gates, sent, wanted) scattered to float32 [T, E]; unused slots add 0."""
    used_TK = slots_TK.float() * routing.wanted_TK
    return torch.zeros_like(routing.probs_TE).scatter_add(1, routing.expert_TK, used_TK)


def gates(routing: Routing) -> Tensor:
    return dense(routing, routing.gate_TK)


def sent(routing: Routing) -> Tensor:
    return dense(routing, routing.sent_TK)


def wanted(routing: Routing) -> Tensor:
    return dense(routing, routing.wanted_TK)
