"""BASE layers: balanced assignment in training as a linear assignment problem, solved exactly."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from moescope.config import Config
from moescope.ranks import gathered, global_rows
from moescope.routers.assignment import assign
from moescope.routers.base import Law, RouterContext, Routing
from moescope.routers.linear import LinearRouter
from moescope.routers.select import decide, rank, selectable


@dataclass(frozen=True, kw_only=True)
class BaseLayerConfig(Config):
    pass


class BaseLayer(LinearRouter):
    """One expert per token: in training by the assignment of largest Σ h·e in which all experts get equally many.

    2103.16716, section 3: tokens that do not divide evenly among the alive experts are filled up with padding tokens,
    which are equally close to all experts, are assigned with the others and then forgotten: an expert gets at most
    ceil(T / E) tokens. At evaluation each token takes its closest expert. The gate is sigmoid(h·e) of the expert, in
    both. The assignment is over the valid tokens of the batch of all ranks, without gradient; it depends on later ones.
    """

    Config = BaseLayerConfig
    config: BaseLayerConfig
    causal = "no"
    learns = True
    grows = False
    shifts = False
    k = 1
    breaks = frozenset[Law]({"gates_sum_to_one", "single_expert_is_expert"})
    k_meaning = "one expert per token, fixed"
    rule = "training: balanced assignment of largest total score; evaluation: top-1; gate sigmoid"
    source = "BASE layers 2103.16716, Eq. 1-3"
    oracle = "scipy's `linear_sum_assignment`"
    departs = (
        "exact, over the whole batch, where fairseq assigns each worker's shuffled share by an auction; rows start at "
        "N(0, 0.02²), where fairseq's are orthogonal of length 0.1"
    )

    def forward(self, h_Td: Tensor, context: RouterContext) -> Routing:
        logits_TE = self.logits(h_Td, context)
        expert_T1 = self._assigned(logits_TE, context) if context.training else rank(logits_TE, 1)
        wanted_T1 = selectable(logits_TE, 1)
        routing = decide(logits_TE, logits_TE.sigmoid(), logits_TE, expert_T1, wanted_T1, context, renormalise=False)
        return replace(routing, probs_TE=logits_TE.softmax(dim=-1))

    @torch.no_grad()
    def _assigned(self, logits_TE: Tensor, context: RouterContext) -> Tensor:
        """int64 [T, 1]: each token's expert; at padding any."""
        rows_GE = gathered(logits_TE.masked_fill(~context.valid_T[:, None], -torch.inf))
        counts_G = (rows_GE > -torch.inf).any(dim=1)
        alive_A = context.alive_E.nonzero()[:, 0]
        score_RA = rows_GE[counts_G][:, alive_A].double().cpu().numpy()
        padding = -len(score_RA) % len(alive_A)
        filled_RA = np.concatenate([score_RA, np.zeros((padding, len(alive_A)))])
        column_R = torch.from_numpy(assign(filled_RA)[: len(score_RA)]).to(alive_A.device)
        expert_G = torch.zeros_like(counts_G, dtype=torch.int64)
        expert_G[counts_G] = alive_A[column_R]
        first, _ = global_rows(len(logits_TE))
        return expert_G[first : first + len(logits_TE), None]
