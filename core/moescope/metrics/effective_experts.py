"""Effective experts: how many experts an average token weighs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import numpy as np

from moescope.metrics.base import Measurement, Metric
from moescope.metrics.scores import mean_distribution_entropy, probs
from moescope.metrics.view import LayerView


class EffectiveExperts(Metric):
    """exp of the mean routing entropy: how many experts an average token weighs."""

    name = "effective_experts"
    title = "Effective experts per token"
    definition = "exp(mean_i H(p_i)): between 1 (every token is sure of one expert) and E (uniform)."
    null = "A router that ignores the token and has the same mean distribution: exp(H(mean_i p_i)), without spread."
    caveat = "Of the router's whole distribution, not of the k experts that are computed."
    unit = "experts"
    tensor = "layer.{layer}.entropy"
    source = "Hill number of order 1 (Hill 1973); of order 2 in the detail"
    details: ClassVar[Mapping[str, str]] = {
        "uniform": "E, the number of alive experts",
        "inverse_simpson": "mean of 1 / sum_e p_e^2 (Hill number of order 2); null where the logits do not give back p",
    }

    def compute(self, view: LayerView) -> Iterator[Measurement]:
        entropy_T = view.data.entropy_T.astype(np.float64)
        known = np.flatnonzero(np.isfinite(entropy_T))
        if known.size == 0:
            yield self.missing(view, "the router reported no distribution over experts")
            return
        probs_TE = probs(view)
        null = mean_distribution_entropy(view)
        yield self.result(
            view,
            float(np.exp(entropy_T[known].mean())),
            n=int(known.size),
            null=None if null is None else float(np.exp(null)),
            replicates_B=np.exp(view.view.mean_replicates(entropy_T[known], known)),
            bounds=(1.0, float(view.num_experts)),
            detail={
                "uniform": float(view.num_experts),
                "inverse_simpson": None if probs_TE is None else float((1 / np.square(probs_TE).sum(axis=1)).mean()),
            },
        )
