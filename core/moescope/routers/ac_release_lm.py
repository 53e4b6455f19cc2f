"""The adaptive clustering router as released for language models."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from moescope.config import doc
from moescope.routers.adaptive import AdaptiveConfig, AdaptiveRouter
from moescope.routers.base import RouterContext
from moescope.routers.select import only_alive


@dataclass(frozen=True, kw_only=True)
class AcReleaseLmConfig(AdaptiveConfig):
    clip: float | None = field(
        default=10.0, metadata=doc("most that a weight may be, over the mean of all weights; none: no clip")
    )


class AcReleaseLm(AdaptiveRouter):
    """w = 1/(s + eps), clipped at 10 times the mean, each feature divided by its mean over the clusters.

    Scored against expert embeddings of unit norm, no bias; softmax over the top-k logits. What all clusters have in
    common cancels in the scaling: one global cluster is exactly w = 1, and so is a token that is decoded alone.
    """

    Config = AcReleaseLmConfig
    config: AcReleaseLmConfig
    scaling = "feature"
    rule = "inverse dispersion, clipped, per feature over its mean; unit-norm expert rows; softmax over the top k"
    source = "2502.15315, released language models (COSAGate_Balance with mean absolute deviation)"
    departs = (
        "there are always E clusters, and those of fewer than min_count tokens stay out of clip and mean and take the "
        "others' mean, where the released code counts clusters up to the highest label and gives empty ones 1/eps, "
        "which shrinks all others; expert rows are normalised where they are used, not also in place"
    )

    def logits(self, h_Td: Tensor, context: RouterContext) -> Tensor:
        with torch.autocast(h_Td.device.type, enabled=False):
            unit_Ed = F.normalize(self.weight.float(), dim=-1)
            return only_alive(self._shifted(F.linear(h_Td.float(), unit_Ed), context), context.alive_E)
