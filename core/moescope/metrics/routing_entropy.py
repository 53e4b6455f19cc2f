"""Routing entropy: how sharp a router is, token by token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import numpy as np

from moescope.metrics.base import Measurement, Metric
from moescope.metrics.scores import mean_distribution_entropy
from moescope.metrics.view import LayerView


class RoutingEntropy(Metric):
    """Mean over tokens of the entropy of the router's distribution.

    Its null is exact: a router that ignores the token and always gives out the mean distribution (hence the same
    expected loads) has entropy H(mean p) for every token. There is no spread, hence no z and no p.
    """

    name = "routing_entropy"
    title = "Routing entropy"
    definition = "mean_i H(p_i): the entropy of the router's distribution over alive experts, averaged over tokens."
    null = "A router that ignores the token and has the same mean distribution: H(mean_i p_i), without spread."
    caveat = "Sharp is not specialised: a collapsed router is sharp too; log E, the most there can be, is in detail."
    unit = "nats"
    tensor = "layer.{layer}.entropy"
    source = "Shannon 1948; the gap to the null is the soft mutual information H(mean p) - mean H(p)"
    details: ClassVar[Mapping[str, str]] = {
        "uniform": "log E, the entropy of a uniform router",
        "soft_mutual_information": "null minus value: I(E; token) of the router's soft choice, in nats",
    }

    def compute(self, view: LayerView) -> Iterator[Measurement]:
        entropy_T = view.data.entropy_T.astype(np.float64)
        known = np.flatnonzero(np.isfinite(entropy_T))
        if known.size == 0:
            yield self.missing(view, "the router reported no distribution over experts")
            return
        value = float(entropy_T[known].mean())
        null = mean_distribution_entropy(view)
        uniform = float(np.log(view.num_experts))
        yield self.result(
            view,
            value,
            n=int(known.size),
            null=null,
            replicates_B=view.view.mean_replicates(entropy_T[known], known),
            bounds=(0.0, uniform),
            detail={"uniform": uniform, "soft_mutual_information": None if null is None else null - value},
        )
