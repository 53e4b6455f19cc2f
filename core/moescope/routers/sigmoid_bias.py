"""Sigmoid scores, a bias that balances the choice without a loss, groups of experts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from moescope.config import Config, doc
from moescope.ranks import summed
from moescope.routers.base import Law, Place, RouterContext, Routing
from moescope.routers.linear import LinearRouter
from moescope.routers.select import decide, only_alive, rank, selectable


@dataclass(frozen=True, kw_only=True)
class SigmoidBiasConfig(Config):
    k: int = field(default=2, metadata=doc("experts per token"))
    num_groups: int = field(default=1, metadata=doc("groups of neighbouring experts (devices, nodes); 1: no limit"))
    top_groups: int = field(default=1, metadata=doc("groups that a token's experts may come from"))
    group_score: Literal["top2", "share"] = field(
        default="top2",
        metadata=doc(
            "what ranks groups, a sum of biased scores: of the group's best two (DeepSeek's code, transformers), or of "
            "its best k / top_groups, rounded down (the paper, megatron-core)"
        ),
    )
    scale: float = field(default=1.0, metadata=doc("factor on all gates (DeepSeek-V3: 2.5)"))
    renormalise: bool = field(default=True, metadata=doc("gates over their sum, before the factor; false: raw scores"))
    update_rate: float = field(default=1e-3, metadata=doc("u, how far the bias of an expert moves after each batch"))

    def __post_init__(self) -> None:
        self.require(self.k >= 1, "k", "a token needs at least one expert.")
        self.require(self.num_groups >= 1, "num_groups", "there is at least one.")
        self.require(1 <= self.top_groups <= self.num_groups, "top_groups", f"there are {self.num_groups} groups.")
        some = self.group_score == "top2" or self.top_groups <= self.k
        self.require(some, "top_groups", f"with group_score = share it is at most k = {self.k}.")
        self.require(0 < self.scale < math.inf, "scale", "it must be above 0.")
        self.require(0 <= self.update_rate < math.inf, "update_rate", "it must not be negative.")


class SigmoidBias(LinearRouter):
    """s = sigmoid(z); the k highest s + b within the best groups; gates s over their sum, times `scale`.

    The bias b of an expert enters the choice only: no gradient, no gate. After each batch in training, and after it
    was routed, b += u · sign(mean load − load) over alive experts, loads being wanted assignments of the global batch
    (2408.15664, Algorithm 1). Groups are runs of E / num_groups neighbouring slots; a group's score is the sum of its
    best biased scores among alive experts. `probs_TE` is s over its sum. Slots are ordered by s + b, what was ranked.
    """

    Config = SigmoidBiasConfig
    config: SigmoidBiasConfig
    bias: Tensor
    causal = "yes"
    learns = True
    shifts = False
    per_expert = ("weight", "bias")
    k_meaning = "experts per token, fixed"
    rule = "sigmoid, top-k of score + bias within the best groups, gates are the scores renormalised and scaled"
    source = "DeepSeek-V3 2412.19437, Eq. 12-16; the bias: 2408.15664, Algorithm 1"
    oracle = "transformers' DeepseekV3TopkRouter, megatron-core's sigmoid top-k and bias update, a loop"
    departs = (
        "The factor on the gates is 1 by default (DeepSeek-V3: 2.5), so that gates sum to 1; the released code also "
        "adds 1e-20 to the sum of the chosen scores."
    )

    def __init__(self, config: SigmoidBiasConfig, d_model: int, num_experts: int, place: Place | None = None) -> None:
        config.require(config.k <= num_experts, "k", f"there are only {num_experts} experts.")
        config.require(num_experts % config.num_groups == 0, "num_groups", f"it must divide {num_experts} experts.")
        room = config.top_groups * (num_experts // config.num_groups)
        config.require(config.k <= room, "k", f"{config.top_groups} groups hold only {room} experts.")
        super().__init__(config, d_model, num_experts, place)
        self.register_buffer("bias", torch.zeros(num_experts))
        self.k = config.k
        self.learns = config.k > 1 or not config.renormalise  # one renormalised gate is constant
        self.grouped = config.top_groups < config.num_groups < num_experts
        breaks: set[Law] = {"expert_relabelling"} if self.grouped else set()
        if config.scale != 1 or not config.renormalise:
            breaks |= {"gates_sum_to_one", "single_expert_is_expert"}
        self.breaks = frozenset(breaks)

    def forward(self, h_Td: Tensor, context: RouterContext) -> Routing:
        config = self.config
        logits_TE = self.logits(h_Td, context)
        s_TE = logits_TE.sigmoid()
        probs_TE = F.logsigmoid(logits_TE).softmax(dim=-1)  # s over its sum, also where every s underflows
        scores_TE = only_alive(s_TE + self.bias, context.alive_E)
        if self.grouped:
            scores_TE = scores_TE.masked_fill(~self._in_best_groups(scores_TE), -torch.inf)
        expert_TK = rank(scores_TE, config.k)
        wanted_TK = selectable(scores_TE, config.k)
        gated_TE = probs_TE if config.renormalise else s_TE
        routing = decide(logits_TE, gated_TE, scores_TE, expert_TK, wanted_TK, context, renormalise=config.renormalise)
        if context.training:
            self._balance(routing, context)
        return replace(routing, probs_TE=probs_TE, gate_TK=routing.gate_TK * config.scale)

    def _in_best_groups(self, scores_TE: Tensor) -> Tensor:
        """bool [T, E]: whether the expert's group is among the token's best."""
        config = self.config
        scores_TGM = scores_TE.detach().view(len(scores_TE), config.num_groups, -1)
        size = scores_TGM.shape[-1]
        best = min(2 if config.group_score == "top2" else config.k // config.top_groups, size)
        top_TGN = scores_TGM.topk(best, dim=-1).values
        exists_TG = top_TGN[..., 0] > -torch.inf
        group_TG = top_TGN.where(top_TGN > -torch.inf, 0.0).sum(dim=-1).where(exists_TG, -torch.inf)
        in_TG = torch.zeros_like(exists_TG).scatter(1, rank(group_TG, config.top_groups), True)
        return in_TG.repeat_interleave(size, dim=1)

    @torch.no_grad()
    def _balance(self, routing: Routing, context: RouterContext) -> None:
        wanted_N = routing.wanted_TK.flatten().long()
        load_E = wanted_N.new_zeros(self.num_experts).scatter_add(0, routing.expert_TK.flatten(), wanted_N)
        load_E = summed(load_E)
        above_E = load_E.sum() - load_E * context.alive_E.sum()  # the sign of mean - load, in whole numbers
        self.bias += self.config.update_rate * above_E.sign() * context.alive_E

    def reset(self, generator: torch.Generator | None = None) -> None:
        super().reset(generator)
        if "bias" in self._buffers:
            self.bias.zero_()
