"""Cosine with expert embeddings in few dimensions, over a temperature (X-MoE), in the forms that are in use."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moescope.config import Config, doc
from moescope.routers.base import Law, Place, Router, RouterContext, Routing
from moescope.routers.cosine import cosine, unit
from moescope.routers.select import decide, only_alive, rank, selectable

_COLDEST = 1e-4
"""A temperature that divides counts as no less than this (the authors' code)."""

_LARGEST_SCALE = 100.0
"""A scale learned as a logarithm counts as no more than this (Tutel)."""


@dataclass(frozen=True, kw_only=True)
class XMoEConfig(Config):
    k: int = field(default=2, metadata=doc("experts per token"))
    width: int | None = field(
        default=None,
        metadata=doc("dimensions that tokens are projected to; none: half the number of experts, at least 2"),
    )
    bias: bool = field(default=False, metadata=doc("whether the projection has a bias"))
    normalise_projection: bool = field(
        default=True,
        metadata=doc("whether projected tokens are brought to length 1; false: their length stays in the logits"),
    )
    expert_norm: float = field(default=1.0, metadata=doc("length that expert embeddings are brought to"))
    temperature: float = field(default=0.3, metadata=doc("the temperature, where it starts if it is learned"))
    temperature_form: Literal["divisor", "log_scale"] = field(
        default="divisor",
        metadata=doc("what the parameter is: the temperature itself, or log(1 / temperature), capped at log 100"),
    )
    learn_temperature: bool = field(default=True, metadata=doc("whether the temperature is learned"))
    gates: Literal["chosen", "all", "sigmoid", "twice"] = field(
        default="chosen",
        metadata=doc(
            "softmax over the chosen experts; softmax over all, not renormalised; a sigmoid each; or softmax over all, "
            "and once more over the chosen probabilities"
        ),
    )

    def __post_init__(self) -> None:
        self.require(self.k >= 1, "k", "a token needs at least one expert.")
        self.require(self.width is None or 1 <= self.width <= 65536, "width", "it must lie between 1 and 65536.")
        self.require(0 < self.expert_norm < math.inf, "expert_norm", "it must be above 0.")
        self.require(_COLDEST <= self.temperature <= 1e6, "temperature", f"it must lie in [{_COLDEST}, 1e6].")
        warm = self.temperature_form == "divisor" or self.temperature >= 1 / _LARGEST_SCALE
        self.require(warm, "temperature", f"as a log_scale it must be at least {1 / _LARGEST_SCALE}.")


class XMoE(Router):
    """z_e = cos(P h, w_e) / τ; k highest; gates softmax over the chosen. P projects to E/2 dimensions; τ is learned.

    P is `projection` [width, d], w_e a row of `weight` [E, width]. The public forms do not agree; each is a setting
    (`gates = chosen` equals softmax over all, renormalised over the chosen):

    - fairseq (the authors' first code): k = 1, width 16, `temperature = 0.07`, `gates = sigmoid`;
    - torchscale and unilm: width 16, `normalise_projection = false`, `temperature = 1`, `learn_temperature = false`,
      `gates = all` at k = 1, `chosen` at k = 2; CompeteSMoE's copy for fastmoe: the latter with width 8;
    - Tutel: width 256, `bias = true`, `temperature = 0.5`, `temperature_form = log_scale`, `gates = all` at k = 1,
      `chosen` above;
    - LibMoE: `expert_norm = 1.5`, `temperature = 0.3`, `learn_temperature = false`, `gates = twice`.
    """

    Config = XMoEConfig
    config: XMoEConfig
    weight: nn.Parameter
    projection: nn.Parameter
    temperature: Tensor
    causal = "yes"
    learns = True
    grows = True
    per_expert = ("weight",)
    k_meaning = "experts per token, fixed"
    rule = "cosine in a low-dimensional projection, over a temperature; top-k; softmax over the chosen"
    source = "X-MoE 2204.09179, section 3"
    oracle = "loop-based references of every public form in the tests"
    departs = (
        "gates are softmax over the chosen at k = 2, where the paper's are over all at k = 1; expert embeddings are "
        "normalised where they are used, not rescaled in place at every call as torchscale does: the logits are the "
        "same, and no call changes a weight; the width is at least 2, since one dimension has only two directions"
    )

    def __init__(self, config: XMoEConfig, d_model: int, num_experts: int, place: Place | None = None) -> None:
        config.require(config.k <= num_experts, "k", f"there are only {num_experts} experts.")
        super().__init__(config, d_model, num_experts, place)
        width = config.width or max(2, num_experts // 2)
        self.k = config.k
        self.projection = nn.Parameter(torch.empty(width, d_model))
        self.projection_bias = nn.Parameter(torch.empty(width)) if config.bias else None
        self.weight = nn.Parameter(torch.empty(num_experts, width))
        if config.learn_temperature:
            self.temperature = nn.Parameter(torch.empty(()))
        else:
            self.register_buffer("temperature", torch.empty(()))
        self.learns = (
            config.gates in ("all", "sigmoid") or config.k > 1
        )  # one renormalised gate is 1 whatever is learned
        broken: set[Law] = set()
        if config.gates == "sigmoid":
            broken = {"gates_sum_to_one", "single_expert_is_expert"}
        elif config.gates == "all" and config.k < num_experts:
            broken = {"gates_sum_to_one"}
        self.breaks = frozenset(broken)
        self.shifts = config.gates in ("chosen", "all")  # a softmax of probabilities, or a sigmoid, halves otherwise
        self.reset()

    @property
    def rows_Ed(self) -> Tensor | None:
        return self.weight

    @torch.no_grad()
    def reset(self, generator: torch.Generator | None = None) -> None:
        self.projection.normal_(0.0, 0.02, generator=generator)
        nn.init.orthogonal_(self.weight, generator=generator)
        if self.projection_bias is not None:
            self.projection_bias.zero_()
        start = self.config.temperature
        self.temperature.fill_(start if self.config.temperature_form == "divisor" else -math.log(start))

    @torch.no_grad()
    def towards(self, direction_d: Tensor) -> Tensor:
        return F.linear(direction_d.float(), self.projection.float())

    def logits(self, h_Td: Tensor, context: RouterContext) -> Tensor:
        """Cosine over temperature, float32 [T, E]; -inf and no gradient at dead slots."""
        config = self.config
        with torch.autocast(h_Td.device.type, enabled=False):
            bias = None if self.projection_bias is None else self.projection_bias.float()
            low_Tr = F.linear(h_Td.float(), self.projection.float(), bias)
            row_Er = self.weight.float()
            close_TE = cosine(low_Tr, row_Er) if config.normalise_projection else F.linear(low_Tr, unit(row_Er))
            if config.temperature_form == "divisor":
                scale = config.expert_norm / self.temperature.clamp_min(_COLDEST)
            else:
                scale = config.expert_norm * self.temperature.clamp_max(math.log(_LARGEST_SCALE)).exp()
            return only_alive(self._shifted(close_TE * scale, context), context.alive_E)

    def forward(self, h_Td: Tensor, context: RouterContext) -> Routing:
        k, kind = self.config.k, self.config.gates
        logits_TE = self.logits(h_Td, context)
        value_TE = logits_TE.sigmoid() if kind == "sigmoid" else logits_TE.softmax(dim=-1)
        scores_TE = only_alive(value_TE, context.alive_E)
        expert_TK, wanted_TK = rank(scores_TE, k), selectable(scores_TE, k)
        gate_TE = value_TE.exp() if kind == "twice" else value_TE
        renormalise = kind in ("chosen", "twice")
        routing = decide(logits_TE, gate_TE, scores_TE, expert_TK, wanted_TK, context, renormalise=renormalise)
        return replace(routing, probs_TE=value_TE / value_TE.sum(-1, keepdim=True) if kind == "sigmoid" else value_TE)
