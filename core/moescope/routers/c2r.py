"""Collaboration-constrained routing: a token's experts come from one circle that usually works together."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from moescope.config import Config, doc
from moescope.ranks import summed
from moescope.routers.base import Law, Place, RouterContext, Routing
from moescope.routers.linear import LinearRouter
from moescope.routers.select import decide, only_alive, rank, selectable


@dataclass(frozen=True, kw_only=True)
class C2RConfig(Config):
    k: int = field(default=2, metadata=doc("experts per token"))
    partners: int | None = field(
        default=None, metadata=doc("partners on each expert's list; none: half of the experts, at least k - 1")
    )
    warmup: float = field(
        default=0.1,
        metadata=doc("share of the run's steps in which routing is plain top-k, and who works with whom is counted"),
    )
    warmup_steps: int | None = field(default=None, metadata=doc("that many steps instead; none: the share"))
    renormalise: bool = field(default=True, metadata=doc("gates over their sum; false: raw probabilities"))

    def __post_init__(self) -> None:
        self.require(self.k >= 1, "k", "a token needs at least one expert.")
        enough = self.partners is None or self.partners >= self.k - 1
        self.require(enough, "partners", f"a token needs k - 1 = {self.k - 1} of them.")
        self.require(0 <= self.warmup <= 1, "warmup", "it must lie in [0, 1].")
        some = self.warmup_steps is None or self.warmup_steps >= 1
        self.require(some, "warmup_steps", "who works with whom is counted on one batch at least.")


class C2R(LinearRouter):
    """The most probable expert, and the k - 1 most probable of that expert's usual partners (2504.01337).

    An expert's partners are those with whom plain top-k chose it most often for the same token; of equal counts the
    lower id. They are counted in a warm-up, in which routing is plain top-k, over all ranks' valid tokens; its last
    step freezes the lists. Gates are p = softmax(z) over their sum. Without `warmup_steps`, and outside a run whose
    number of steps is known, the warm-up does not end.

    An expert that was dead when the lists froze has no list and is on everybody's; one with fewer than k - 1 living
    partners is not constrained.
    """

    Config = C2RConfig
    config: C2RConfig
    count_EE: Tensor
    partner_EE: Tensor
    frozen: Tensor
    causal = "yes"
    learns = True
    k_meaning = "experts per token, fixed"
    rule = "softmax, top-1, then the k - 1 best of its list of usual partners; renormalise"
    source = "C2R 2504.01337, its expert collaboration matrix and top-T lists"
    departs = (
        "partners are counted in the warm-up of the same run, where the paper profiles a trained model on long texts "
        "and fine-tunes it afterwards; by default half of the experts, as its Qwen-MoE has 30 of 60, and gates are "
        "renormalised, which its Qwen-MoE leaves out"
    )

    def __init__(self, config: C2RConfig, d_model: int, num_experts: int, place: Place | None = None) -> None:
        config.require(config.k <= num_experts, "k", f"there are only {num_experts} experts.")
        others = config.partners is None or config.partners < num_experts
        config.require(others, "partners", f"an expert has only {num_experts - 1} others.")
        super().__init__(config, d_model, num_experts, place)
        self.register_buffer("count_EE", torch.zeros(num_experts, num_experts, dtype=torch.int64))
        self.register_buffer("partner_EE", torch.ones(num_experts, num_experts, dtype=torch.bool))
        self.register_buffer("frozen", torch.tensor(False))
        self.k = config.k
        self.learns = config.k > 1 or not config.renormalise  # one renormalised gate is 1 whatever the router says
        if not config.renormalise:
            self.breaks = frozenset[Law]({"gates_sum_to_one"})

    def forward(self, h_Td: Tensor, context: RouterContext) -> Routing:
        k, logits_TE = self.config.k, self.logits(h_Td, context)
        probs_TE = logits_TE.softmax(dim=-1)
        free_TE = only_alive(probs_TE, context.alive_E)
        may_TE = self._circles(context.alive_E)[rank(free_TE, 1)[:, 0]]
        scores_TE = free_TE.masked_fill(~may_TE, -torch.inf)
        routing = decide(
            logits_TE,
            probs_TE,
            scores_TE,
            rank(scores_TE, k),
            selectable(scores_TE, k),
            context,
            renormalise=self.config.renormalise,
        )
        if context.training and not self.frozen:
            self._count(routing, context)
        return routing

    def _circles(self, alive_E: Tensor) -> Tensor:
        """bool [E, E]: with whom each expert may be chosen, itself included."""
        living_EE = self.partner_EE & alive_E
        return living_EE | (living_EE.sum(dim=1, keepdim=True) < self.config.k)

    @torch.no_grad()
    def _count(self, routing: Routing, context: RouterContext) -> None:
        chosen_TE = torch.zeros_like(routing.probs_TE).scatter_add(1, routing.expert_TK, routing.wanted_TK.float())
        self.count_EE += summed((chosen_TE.T @ chosen_TE).round().long())
        if context.step + 1 >= self._warmup(context.num_steps):
            self.partner_EE.copy_(self._lists(context.alive_E))
            self.frozen.fill_(True)

    def _warmup(self, num_steps: int | None) -> float:
        if self.config.warmup_steps is not None:
            return self.config.warmup_steps
        return math.inf if num_steps is None else math.ceil(self.config.warmup * num_steps)

    def _lists(self, alive_E: Tensor) -> Tensor:
        """bool [E, E]: each living expert's most frequent partners and itself; everybody for the dead and the dead for
        everybody."""
        own_EE = torch.eye(self.num_experts, dtype=torch.bool, device=alive_E.device)
        num_alive = int(alive_E.sum())
        num = self.config.partners
        num = min(max(num_alive // 2, self.config.k - 1) if num is None else num, self.num_experts)
        counts_EE = self.count_EE.double().masked_fill(own_EE | ~alive_E, -torch.inf)
        listed_EE = (
            torch.zeros_like(own_EE).scatter(1, rank(counts_EE, num), selectable(counts_EE, num)) if num else own_EE
        )
        return listed_EE | own_EE | ~alive_E | ~alive_E[:, None]

    @torch.no_grad()
    def copy_slot(self, parent: int, child: int) -> None:
        """The copy works with whom its original works with, and is on the lists that it is on."""
        super().copy_slot(parent, child)
        for table_EE in (self.count_EE, self.partner_EE):
            table_EE[child] = table_EE[parent]
            table_EE[:, child] = table_EE[:, parent]

    @torch.no_grad()
    def forget_slot(self, slot: int) -> None:
        super().forget_slot(slot)
        for table_EE, start in ((self.count_EE, 0), (self.partner_EE, True)):
            table_EE[slot] = start
            table_EE[:, slot] = start

    @torch.no_grad()
    def reset(self, generator: torch.Generator | None = None) -> None:
        super().reset(generator)
        if "frozen" in self._buffers:
            self.count_EE.zero_()
            self.partner_EE.fill_(True)
            self.frozen.fill_(False)
