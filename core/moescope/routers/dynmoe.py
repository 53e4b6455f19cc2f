"""As many experts as are close enough to the token: a threshold per expert, learned."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from moescope.config import Config, doc
from moescope.routers.base import Place, RouterContext, Routing
from moescope.routers.cosine import cosine
from moescope.routers.linear import LinearRouter
from moescope.routers.select import decide, only_alive, rank, selectable


@dataclass(frozen=True, kw_only=True)
class DynMoEConfig(Config):
    threshold: float = field(
        default=0.0, metadata=doc("where every expert's learnable threshold starts; compared with a cosine")
    )

    def __post_init__(self) -> None:
        self.require(abs(self.threshold) <= 1e6, "threshold", "it must lie in [-1e6, 1e6].")


class DynMoE(LinearRouter):
    """Expert e is active where sigmoid(cos(h, w_e)) > sigmoid(threshold_e); gates 1 / number active ("top-any gating").

    The step from score to 0 or 1 has no gradient, so the gate's is handed to sigmoid(cos) - sigmoid(threshold)
    unchanged (straight-through); the number active counts as a constant. Only active experts are computed, so only
    they hand anything back. At evaluation a token that activates none goes to its best-scored expert; in training it
    goes nowhere: its output is zero, and no slot of it is wanted (what growth by coverage looks at). Slots are the
    active experts by sigmoid(cos), then the others by id. `probs_TE` is sigmoid(cos) over its sum.
    """

    Config = DynMoEConfig
    config: DynMoEConfig
    threshold: nn.Parameter
    causal = "yes"
    learns = True
    shifts = False
    per_expert = ("weight", "threshold")
    k_meaning = "varies by token: experts whose threshold its cosine passes, from none (in training) to all"
    rule = "active where sigmoid(cos) > sigmoid(threshold); equal gates; at evaluation at least the best one"
    source = "DynMoE 2405.14297, section 3.1 (top-any gating)"
    departs = (
        "no logit scale: the released code multiplies cosine and threshold by one (fixed at 1, or learned from 10), "
        "which changes the slope of the straight-through gradient but no selection; its losses (load, diversity, "
        "efficiency) are objectives here, and experts are added and dropped by growth, not by the router"
    )

    def __init__(self, config: DynMoEConfig, d_model: int, num_experts: int, place: Place | None = None) -> None:
        super().__init__(config, d_model, num_experts, place)
        self.threshold = nn.Parameter(torch.full((num_experts,), float(config.threshold)))

    @torch.no_grad()
    def reset(self, generator: torch.Generator | None = None) -> None:
        """Orthogonal rows, as released; where there are more experts than dimensions, as nearly so as can be."""
        nn.init.orthogonal_(self.weight, generator=generator)
        if "threshold" in self._parameters:
            self.threshold.fill_(self.config.threshold)

    def logits(self, h_Td: Tensor, context: RouterContext) -> Tensor:
        """cos(h, w_e), float32 [T, E]; -inf and no gradient at dead slots."""
        with torch.autocast(h_Td.device.type, enabled=False):
            return only_alive(cosine(h_Td.float(), self.weight.float()), context.alive_E)

    @torch.no_grad()
    def forget_slot(self, slot: int) -> None:
        super().forget_slot(slot)
        self.threshold[slot] = self.config.threshold

    def forward(self, h_Td: Tensor, context: RouterContext) -> Routing:
        logits_TE = self.logits(h_Td, context)
        value_TE = logits_TE.sigmoid()
        scores_TE = only_alive(value_TE, context.alive_E)
        margin_TE = value_TE - self.threshold.float().sigmoid()
        active_TE = margin_TE.detach() > 0
        if not context.training:
            best_T1 = rank(scores_TE, 1)
            none_T1 = ~active_TE.any(dim=-1, keepdim=True)
            active_TE = active_TE.scatter(1, best_T1, active_TE.gather(1, best_T1) | none_T1)
        ranked_TE = scores_TE.detach().masked_fill(~active_TE, -torch.inf)
        expert_TE, wanted_TE = rank(ranked_TE, self.num_experts), selectable(ranked_TE, self.num_experts)
        straight_TE = active_TE.float() + (margin_TE - margin_TE.detach())
        gate_TE = straight_TE / active_TE.sum(dim=-1, keepdim=True).clamp_min(1)
        routing = decide(logits_TE, gate_TE, scores_TE, expert_TE, wanted_TE, context, renormalise=False)
        return replace(routing, probs_TE=value_TE / value_TE.sum(dim=-1, keepdim=True))
