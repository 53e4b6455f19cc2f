"""Load entropy: how evenly the router spreads its probability mass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import numpy as np

from moescope.metrics.base import Measurement, Metric
from moescope.metrics.scores import entropy, mean_distribution_entropy, probs
from moescope.metrics.view import LayerView


class LoadEntropy(Metric):
    """Entropy of the mean distribution: balance of the router's probability mass."""

    name = "load_entropy"
    title = "Load entropy"
    definition = "H(mean_i p_i): the entropy of the router's distribution averaged over tokens."
    null = "Perfectly even loads: log E exactly, the most there can be, without spread."
    caveat = "Of probabilities, not of assignments: a router may spread its mass evenly and still choose the same k."
    unit = "nats"
    tensor = "layer.{layer}.mean_probs"
    source = "Shannon 1948"
    details: ClassVar[Mapping[str, str]] = {"effective": "exp of the value: experts that share the load"}

    def compute(self, view: LayerView) -> Iterator[Measurement]:
        value = mean_distribution_entropy(view)
        if value is None:
            yield self.missing(view, "the router reported no distribution over experts")
            return
        uniform = float(np.log(view.num_experts))
        probs_TE = probs(view)
        yield self.result(
            view,
            value,
            n=view.view.trace.num_tokens,
            null=uniform,
            replicates_B=None if probs_TE is None else self._replicates(view, probs_TE),
            bounds=(0.0, uniform),
            notes=(
                ""
                if probs_TE is not None
                else "No interval: the logits that would give each token's distribution are not stored.",
            ),
            detail={"effective": float(np.exp(value))},
        )

    @staticmethod
    def _replicates(view: LayerView, probs_TE: np.ndarray) -> np.ndarray:
        sums_UE = np.stack([view.view.unit_sums(probs_TE[:, expert]) for expert in range(view.num_experts)], axis=1)
        sums_BE = view.view.weights_BU @ sums_UE
        totals_B1 = sums_BE.sum(axis=1, keepdims=True)
        return entropy(sums_BE[totals_B1[:, 0] > 0] / totals_B1[totals_B1[:, 0] > 0])
