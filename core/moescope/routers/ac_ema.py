"""An adaptive clustering router that sees nothing but the past."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from moescope.config import doc
from moescope.errors import InputError
from moescope.ranks import summed
from moescope.routers.adaptive import AdaptiveConfig, AdaptiveRouter
from moescope.routers.base import Law, Place
from moescope.routers.clusters import Clusters


@dataclass(frozen=True, kw_only=True)
class AcEmaConfig(AdaptiveConfig):
    clip: float | None = field(
        default=10.0, metadata=doc("most that a weight may be, over the mean of all weights; none: no clip")
    )
    decay: float = field(default=0.99, metadata=doc("share that the average of past batches keeps at each batch"))
    warm: int = field(default=10, metadata=doc("training batches before the weights leave 1"))

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0 <= self.decay < 1, "decay", "it must lie in [0, 1).")
        self.require(self.warm >= 1, "warm", "without a past batch there are no statistics.")


class AcEma(AdaptiveRouter):
    """The weights of `ac_release_lm` from an average of past batches' dispersions, on a plain linear router.

    A batch is averaged in after it was routed, in training only: no token sees another one of its own batch, and
    decoding token by token equals the full forward. Until `warm` batches were seen, w = 1. Each cluster has its own
    average, S <- S + (1 - decay)/n (s - S) with n <- decay n + 1 - decay, of the batches in which it had tokens enough
    (so the first batches count alike, rather than the first of all almost alone); one that never had takes the mean of
    the others. Rows of the state are experts of the *previous* layer, not of this one.
    """

    Config = AcEmaConfig
    config: AcEmaConfig
    dispersion: Tensor
    evidence: Tensor
    batches: Tensor
    causal = "yes"
    breaks = frozenset[Law]()
    scaling = "feature"
    rule = "inverse dispersion of past batches, clipped, per feature over its mean; softmax, top-k, renormalise"
    source = "2502.15315, with statistics of the past (ours)"
    departs = (
        "the paper's statistics are the batch's own, which shows a token its future and leaves a token decoded alone "
        "without any; these are a moving average of past batches, frozen at evaluation"
    )

    def __init__(self, config: AcEmaConfig, d_model: int, num_experts: int, place: Place | None = None) -> None:
        super().__init__(config, d_model, num_experts, place)
        self.register_buffer("dispersion", torch.zeros(num_experts, d_model))
        self.register_buffer("evidence", torch.zeros(num_experts))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def cluster_weights(self, h_Td: Tensor, clusters: Clusters) -> Tensor:
        if clusters.num != self.num_experts:
            raise InputError(f"ac_ema has {self.num_experts} clusters, the MoE layer before {clusters.num} experts.")
        weight_Cd = self.config.weights_of(self.dispersion, self.evidence > 0, self.scaling)
        return weight_Cd.where(self.batches >= self.config.warm, 1.0)

    @torch.no_grad()
    def observe(self, h_Td: Tensor, clusters: Clusters) -> None:
        spread_Cd, healthy_C = self.config.statistics_of(h_Td, clusters)
        share = 1 - self.config.decay
        evidence_C = (self.config.decay * self.evidence + share).where(healthy_C, self.evidence)
        rate_C = (share / evidence_C.where(healthy_C, 1.0)).where(healthy_C, 0.0)
        self.dispersion += rate_C[:, None] * (spread_Cd - self.dispersion)
        self.evidence.copy_(evidence_C)
        self.batches += summed(clusters.valid_T.sum()) > 0

    @torch.no_grad()
    def copy_cluster(self, parent: int, child: int) -> None:
        for state_C in (self.dispersion, self.evidence):
            state_C[child] = state_C[parent]

    @torch.no_grad()
    def forget_cluster(self, slot: int) -> None:
        for state_C in (self.dispersion, self.evidence):
            state_C[slot] = 0

    def reset(self, generator: torch.Generator | None = None) -> None:
        super().reset(generator)
        if "dispersion" in self._buffers:
            for state in (self.dispersion, self.evidence, self.batches):
                state.zero_()
