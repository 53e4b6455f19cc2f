"""Balanced assignment in training by Sinkhorn's algorithm."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from moescope.config import Config, doc
from moescope.ranks import gathered
from moescope.routers.base import Law, Place, RouterContext, Routing
from moescope.routers.linear import LinearRouter
from moescope.routers.select import decide, only_alive, rank, selectable

_WIDEST = 500.0
"""Logits that lie further than this below their row's best count as this far: exp stays within float64."""


@dataclass(frozen=True, kw_only=True)
class SinkhornConfig(Config):
    k: int = field(default=2, metadata=doc("experts per token"))
    tolerance: float = field(
        default=1e-3,
        metadata=doc(
            "marginal error at which the plan is balanced enough: the most by which an expert's mass is off, over 1/E"
        ),
    )
    max_rounds: int = field(default=100, metadata=doc("most rounds of scaling rows and columns"))

    def __post_init__(self) -> None:
        self.require(self.k >= 1, "k", "a token needs at least one expert.")
        self.require(0 <= self.tolerance < 1, "tolerance", "it must lie in [0, 1).")
        self.require(1 <= self.max_rounds <= 100_000, "max_rounds", "it must lie between 1 and 100000.")


class Sinkhorn(LinearRouter):
    """In training, the k largest entries of each token's row of the balanced plan; at evaluation, plain top-k by p.

    The plan is π = diag(u) exp(z) diag(v), scaled in rounds until every token's mass is 1/T and every alive expert's
    1/E within `tolerance` (S-BASE, 2202.01169, section 2.2). It is taken over the valid tokens of the batch of all
    ranks, without gradient. Gates are p = softmax(z) of the chosen as they are, sigmoid(z) at k = 1.
    A batch is nearly balanced by construction, and whom a token is sent to depends on all others, later ones included.
    """

    Config = SinkhornConfig
    config: SinkhornConfig
    causal = "no"
    learns = True
    grows = False
    shifts = False
    breaks = frozenset[Law]({"gates_sum_to_one", "single_expert_is_expert"})
    k_meaning = "experts per token, fixed"
    rule = "training: top-k of the Sinkhorn-balanced plan; evaluation: top-k; gates softmax, at k = 1 sigmoid"
    source = "S-BASE of 2202.01169, section 2.2"
    oracle = "Sinkhorn in loops, and megatron-core's `sinkhorn`"
    departs = (
        "stops by the plan's marginal error or after 100 rounds, where megatron-core stops once the expert factors "
        "stand still and may run for ever; float64 and row maxima, so that large logits do not overflow"
    )

    def __init__(self, config: SinkhornConfig, d_model: int, num_experts: int, place: Place | None = None) -> None:
        config.require(config.k <= num_experts, "k", f"there are only {num_experts} experts.")
        super().__init__(config, d_model, num_experts, place)
        self.k = config.k
        if 1 < config.k == num_experts:
            self.breaks = type(self).breaks - {"gates_sum_to_one"}

    def forward(self, h_Td: Tensor, context: RouterContext) -> Routing:
        k, logits_TE = self.config.k, self.logits(h_Td, context)
        probs_TE = logits_TE.softmax(dim=-1)
        shares_TE = probs_TE
        if context.training:
            rows_TE = gathered(logits_TE.masked_fill(~context.valid_T[:, None], -torch.inf))
            factor_E = balance(rows_TE, context.alive_E, self.config.tolerance, self.config.max_rounds)
            shares_TE = (logits_TE.detach().double() + factor_E).softmax(dim=-1).float()  # equal shares come out equal
        scores_TE = only_alive(shares_TE, context.alive_E)
        expert_TK, wanted_TK = rank(scores_TE, k), selectable(scores_TE, k)
        value_TE = logits_TE.sigmoid() if k == 1 else probs_TE
        routing = decide(logits_TE, value_TE, scores_TE, expert_TK, wanted_TK, context, renormalise=False)
        return replace(routing, probs_TE=probs_TE)


@torch.no_grad()
def balance(logits_TE: Tensor, alive_E: Tensor, tolerance: float = 1e-3, max_rounds: int = 100) -> Tensor:
    """log v, float64 [E]: what is to be added to every row's logits to balance its softmax over the experts.

    Rows that are -inf throughout do not count; 0 at dead slots. A row's factor u follows from v, and orders nothing.
    """
    z_RA = logits_TE[(logits_TE > -torch.inf).any(dim=1)][:, alive_E].double()
    log_v_E = logits_TE.new_zeros(len(alive_E), dtype=torch.float64)
    if not len(z_RA):
        return log_v_E
    mass_RA = (z_RA - z_RA.amax(dim=1, keepdim=True)).clamp_min(-_WIDEST).exp()
    target = len(z_RA) / mass_RA.shape[1]
    v_A = torch.ones_like(mass_RA[0])
    for _ in range(max_rounds):
        load_A = v_A * (mass_RA.T @ (mass_RA @ v_A).reciprocal())
        if (load_A - target).abs().max() <= tolerance * target:
            break
        v_A *= target / load_A
    log_v_E[alive_E] = v_A.log()
    return log_v_E
