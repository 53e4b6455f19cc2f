"""A router that learns first, and is then replaced by a frozen copy that reads token ids."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moescope.config import Config, doc
from moescope.ranks import summed
from moescope.routers.base import Law, Place, RouterContext, Routing
from moescope.routers.given import token_ids
from moescope.routers.linear import LinearRouter
from moescope.routers.select import decide, only_alive, rank, selectable


@dataclass(frozen=True, kw_only=True)
class StableConfig(Config):
    stage1_steps: int | None = field(
        default=None, metadata=doc("steps of the first stage, which learns; none: a share of the run")
    )
    stage1_share: float = field(default=0.1, metadata=doc("share of the run's steps that the first stage takes"))
    d_routing: int = field(default=50, metadata=doc("width of the distilled router's token embedding"))
    distillation: float = field(default=1.0, metadata=doc("coefficient of the distillation loss"))
    vocab_size: int = field(default=8192, metadata=doc("token ids, outside a model (a model knows its own)"))

    def __post_init__(self) -> None:
        some = self.stage1_steps is None or self.stage1_steps >= 1
        self.require(some, "stage1_steps", "the first stage takes at least one step.")
        self.require(0 < self.stage1_share <= 1, "stage1_share", "it must lie in (0, 1].")
        self.require(1 <= self.d_routing <= 65536, "d_routing", "it must lie between 1 and 65536.")
        self.require(0 <= self.distillation < float("inf"), "distillation", "it must not be negative.")
        self.require(1 <= self.vocab_size <= 1 << 24, "vocab_size", "it must lie between 1 and 2^24.")


class Stable(LinearRouter):
    """StableMoE (2204.08396). Scores s = E h with one centroid E_i [d] per expert (`weight`), top-1, gate σ(s).

    Stage 1 (Section 3.1): the expert is argmax s. Beside it a router that reads nothing but the token id x learns to
    say the same: ŝ = Ê D(x) with an embedding D [V, r] (`embedding`) and centroids Ê [E, r] (`centroids`) of its own;
    its loss is the mean over valid tokens of -log softmax(ŝ) at the expert chosen. (The paper's balance loss is left to
    the objectives; its P is σ(s) over their sum.)
    Stage 2 (Section 3.2): D and Ê are frozen and choose, argmax ŝ; the gate is still σ(s), of that expert. Logits and
    probabilities are then those of ŝ, without gradient.

    `stage` turns to 2 after `stage1_steps` training steps (or `stage1_share` of the run's, at least one) and stays;
    where neither is known it stays as it is.
    """

    Config = StableConfig
    config: StableConfig
    stage: Tensor
    causal = "yes"
    learns = True
    shifts = False
    breaks = frozenset[Law]({"gates_sum_to_one", "single_expert_is_expert"})
    k = 1
    needs = frozenset({"tokens"})
    per_expert = ("weight", "centroids")
    k_meaning = "one expert per token, fixed"
    rule = "top-1 with a sigmoid gate, distilled into a router of token ids that is then frozen and chooses"
    source = "StableMoE 2204.08396, Sections 3.1 and 3.2"
    departs = (
        "Evaluation during stage 1 uses the router that training uses then; the released code already uses the "
        "distilled one. The distillation loss has coefficient 1, as in the paper's sum; the released commands use 0.3."
    )

    def __init__(self, config: StableConfig, d_model: int, num_experts: int, place: Place | None = None) -> None:
        super().__init__(config, d_model, num_experts, place)
        width = config.d_routing
        vocab_size = self.place.vocab_size or config.vocab_size
        self.embedding = nn.Embedding(vocab_size, width, _weight=torch.empty(vocab_size, width))
        self.centroids = nn.Parameter(torch.empty(num_experts, width))
        self.register_buffer("stage", torch.tensor(1))
        self._reset_distilled()

    def forward(self, h_Td: Tensor, context: RouterContext) -> Routing:
        token_T = token_ids(context, self.embedding.num_embeddings, "stable")
        score_TE = self.logits(h_Td, context)
        second = self._in_second(context)
        if second:
            with torch.no_grad():
                logits_TE = self._distilled(token_T, context)
            probs_TE = logits_TE.softmax(dim=-1)
        else:
            logits_TE = score_TE
            probs_TE = F.logsigmoid(score_TE).softmax(dim=-1)  # σ(s) over their sum, also where all underflow
        expert_T1, wanted_T1 = rank(logits_TE, 1), selectable(logits_TE, 1)
        gates_TE = score_TE.sigmoid()
        routing = decide(logits_TE, gates_TE, logits_TE, expert_T1, wanted_T1, context, renormalise=False)
        routing = replace(routing, probs_TE=probs_TE)
        if not context.training:
            return routing
        end = self._end(context)
        if end is not None and context.step + 1 >= end:
            self.stage.fill_(2)
        if second:
            return routing
        return replace(routing, losses={"distillation": self._distillation(token_T, expert_T1, context)})

    def _end(self, context: RouterContext) -> int | None:
        """Training steps of stage 1."""
        if self.config.stage1_steps is not None or context.num_steps is None:
            return self.config.stage1_steps
        return max(1, int(self.config.stage1_share * context.num_steps + 1e-9))

    def _in_second(self, context: RouterContext) -> bool:
        end = self._end(context)
        over = context.training and end is not None and context.step >= end
        return over or bool(self.stage >= 2)

    def _distilled(self, token_T: Tensor, context: RouterContext) -> Tensor:
        """ŝ, float32 [T, E]; -inf and no gradient at dead slots."""
        with torch.autocast(token_T.device.type, enabled=False):
            return only_alive(F.linear(self.embedding(token_T), self.centroids), context.alive_E)

    def _distillation(self, token_T: Tensor, expert_T1: Tensor, context: RouterContext) -> Tensor:
        loss_T = F.cross_entropy(self._distilled(token_T, context), expert_T1[:, 0], reduction="none")
        total = summed(loss_T.where(context.valid_T, 0.0).sum())
        return self.config.distillation * total / summed(context.valid_T.sum()).clamp_min(1)

    @torch.no_grad()
    def _reset_distilled(self, generator: torch.Generator | None = None) -> None:
        self.embedding.weight.normal_(0.0, 1.0, generator=generator)
        self.centroids.normal_(0.0, self.init_std, generator=generator)
        self.stage.fill_(1)

    def reset(self, generator: torch.Generator | None = None) -> None:
        super().reset(generator)
        if "stage" in self._buffers:
            self._reset_distilled(generator)
