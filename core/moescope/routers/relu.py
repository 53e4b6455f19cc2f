"""ReLU gates, kept sparse by a penalty that adapts (ReMoE)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from moescope.config import Config, doc
from moescope.ranks import summed
from moescope.routers.base import Law, Place, RouterContext, Routing
from moescope.routers.linear import LinearRouter
from moescope.routers.select import decide, only_alive, rank

_LEAST, _MOST = 1e-30, 1e30
"""The coefficient stays between these: from 0 or infinity no factor leads back."""


@dataclass(frozen=True, kw_only=True)
class ReluConfig(Config):
    k: float = field(
        default=2, metadata=doc("experts per token aimed at, on average over tokens: the target sparsity is 1 - k/E")
    )
    coefficient: float = field(default=1e-8, metadata=doc("where the coefficient of the penalty starts"))
    factor: float = field(
        default=1.2, metadata=doc("the coefficient is multiplied or divided by this after every training batch")
    )
    penalty: Literal["balanced", "l1"] = field(
        default="balanced",
        metadata=doc("mean gates weighted by each expert's load, which balances it, or their plain sum"),
    )

    def __post_init__(self) -> None:
        self.require(0 < self.k < math.inf, "k", "it must be above 0.")
        self.require(_LEAST <= self.coefficient <= _MOST, "coefficient", f"it must lie in [{_LEAST}, {_MOST}].")
        self.require(1 <= self.factor <= 1e6, "factor", "it must lie in [1, 1e6].")


class Relu(LinearRouter):
    """g = ReLU(z): gates and choice at once, differentiable everywhere; a token may get any number of experts, or none.

    Training adds λ Σ_e f_e · mean_t g_e (Eq. 9), with f_e = (E/k) · share of tokens that expert e is active for
    (Eq. 10, a constant for the gradient), or λ Σ_e mean_t g_e with `penalty = l1` (Eq. 8). After each batch
    λ ← λ · factor^sign((1 - k/E) - S), S being the share of token-expert pairs that are inactive (Eq. 6): up while too
    many are active. E counts alive experts; S, f and the means are over the valid tokens of all ranks.
    `probs_TE` is g over its sum, uniform over the alive experts where all g are 0.
    """

    Config = ReluConfig
    config: ReluConfig
    coefficient: Tensor
    causal = "yes"
    learns = True
    shifts = False
    breaks = frozenset[Law]({"gates_sum_to_one", "single_expert_is_expert"})
    k_meaning = "varies by token from 0 to E; k on average is what the penalty steers towards"
    rule = "g = ReLU(z), every expert with g > 0; an adaptive L1 penalty steers the sparsity"
    source = "ReMoE 2412.14711, Eq. 5-10"
    departs = (
        "every layer steers its own sparsity with a coefficient of its own, where the paper averages over layers and "
        "has one: a router knows only its layer; and the coefficient stays within [1e-30, 1e30], so it never sticks"
    )

    def __init__(self, config: ReluConfig, d_model: int, num_experts: int, place: Place | None = None) -> None:
        config.require(config.k <= num_experts, "k", f"there are only {num_experts} experts.")
        super().__init__(config, d_model, num_experts, place)
        self.register_buffer("coefficient", torch.tensor(float(config.coefficient)))

    def reset(self, generator: torch.Generator | None = None) -> None:
        super().reset(generator)
        if "coefficient" in self._buffers:
            self.coefficient.fill_(self.config.coefficient)

    def forward(self, h_Td: Tensor, context: RouterContext) -> Routing:
        logits_TE = self.logits(h_Td, context)
        g_TE = logits_TE.relu()
        scores_TE = only_alive(g_TE, context.alive_E)
        expert_TE = rank(scores_TE, self.num_experts)
        wanted_TE = g_TE.detach().gather(1, expert_TE) > 0
        routing = decide(logits_TE, g_TE, scores_TE, expert_TE, wanted_TE, context, renormalise=False)
        routing = replace(routing, probs_TE=_shares(g_TE, context.alive_E))
        if context.training:
            routing = replace(routing, losses={"sparsity": self._penalise_and_steer(g_TE, context)})
        return routing

    def _penalise_and_steer(self, g_TE: Tensor, context: RouterContext) -> Tensor:
        """This batch's penalty; the coefficient moves for the next one."""
        g_TE = g_TE.where(context.valid_T[:, None], 0.0)
        num_valid, num_alive = summed(context.valid_T.sum()), context.alive_E.sum()
        tokens = num_valid.clamp_min(1)
        active_E = summed((g_TE.detach() > 0).sum(dim=0))
        mean_E = summed(g_TE.sum(dim=0)) / tokens
        weight_E: Tensor | float = 1.0
        if self.config.penalty == "balanced":
            weight_E = active_E / tokens * (num_alive / self.config.k)
        penalty = self.coefficient.clone() * (weight_E * mean_E).sum()
        # target - S = (1 - k/E) - (1 - active / (tokens * E)), times tokens * E
        excess = active_E.sum().double() - self.config.k * num_valid.double()
        with torch.no_grad():
            moved = self.coefficient.double() * self.config.factor ** excess.sign()
            self.coefficient.copy_(moved.clamp(_LEAST, _MOST))
        return penalty


def _shares(g_TE: Tensor, alive_E: Tensor) -> Tensor:
    sum_T1 = g_TE.sum(dim=-1, keepdim=True)
    some_T1 = sum_T1 > 0
    return (g_TE / sum_T1.where(some_T1, 1.0)).where(some_T1, alive_E / alive_E.sum())
