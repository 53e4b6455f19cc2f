"""Experts choose tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from moescope.config import Config, doc
from moescope.ranks import gathered, global_rows, summed
from moescope.routers.base import Law, Place, RouterContext, Routing
from moescope.routers.linear import LinearRouter
from moescope.routers.select import capacity, decide, only_alive, rank


@dataclass(frozen=True, kw_only=True)
class ExpertChoiceConfig(Config):
    capacity_factor: float = field(default=2.0, metadata=doc("mean experts per token, c in C = ceil(c T / E)"))

    def __post_init__(self) -> None:
        self.require(0 < self.capacity_factor <= 1e6, "capacity_factor", "it must lie in (0, 1e6].")


class ExpertChoice(LinearRouter):
    """Each expert takes the C = ceil(c T / E), at least 1, valid tokens of the batch that give it the highest p.

    p = softmax over experts, gates are p as they are (2202.09368, Eq. 1-3). A token gets 0 to E experts. Perfectly
    balanced, and not causal: whether a token is taken depends on all others, later ones included.
    """

    Config = ExpertChoiceConfig
    config: ExpertChoiceConfig
    causal = "no"
    learns = True
    grows = False
    shifts = False
    breaks = frozenset[Law]({"gates_sum_to_one", "batch_independence"})
    k_meaning = "varies by token from 0 to E; c on average"
    rule = "softmax over experts, each expert's top C tokens, no renormalisation"
    source = "2202.09368, Eq. 1-3"

    def __init__(self, config: ExpertChoiceConfig, d_model: int, num_experts: int, place: Place | None = None) -> None:
        super().__init__(config, d_model, num_experts, place)
        if config.capacity_factor < 1:
            self.breaks = type(self).breaks | {"single_expert_is_expert"}

    def forward(self, h_Td: Tensor, context: RouterContext) -> Routing:
        logits_TE = self.logits(h_Td, context)
        probs_TE = logits_TE.softmax(dim=-1)
        may_TE = context.valid_T[:, None] & context.alive_E
        scores_TE = only_alive(probs_TE, context.alive_E).masked_fill(~may_TE, -torch.inf)
        room = capacity(self.config.capacity_factor, summed(context.valid_T.sum()), context.alive_E)
        order_EG = gathered(scores_TE).T.contiguous().sort(dim=1, descending=True, stable=True).indices
        first_EG = (torch.arange(order_EG.shape[1], device=h_Td.device) < room).expand_as(order_EG)
        begin, _ = global_rows(len(h_Td))
        taken_GE = torch.zeros_like(first_EG).scatter(1, order_EG, first_EG).T
        taken_TE = taken_GE[begin : begin + len(h_Td)] & may_TE
        expert_TK = rank(probs_TE.detach().where(taken_TE, -torch.inf), self.num_experts)
        wanted_TK = taken_TE.gather(1, expert_TK)
        return decide(logits_TE, probs_TE, scores_TE, expert_TK, wanted_TK, context, renormalise=False)
