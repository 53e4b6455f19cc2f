"""MaxVio: how far the busiest expert is above the mean load."""

from __future__ import annotations

import numpy as np

from moescope.metrics.balance import BalanceMetric, load_ratios


class MaxVio(BalanceMetric):
    """max_e load_e * E - 1 over the whole set of tokens (global, not the mean over batches)."""

    name = "maxvio"
    title = "MaxVio (global)"
    definition = "max_e load_e * E - 1, over all tokens of the trace."
    caveat = "0 only if perfectly even; finite data never is, so read it against its null. Per-batch MaxVio is larger."
    unit = "mean loads"
    source = "Wang et al. 2024 (2408.15664), MaxVio_global"

    def of_counts(self, counts_NE: np.ndarray) -> np.ndarray:
        violation: np.ndarray = load_ratios(counts_NE).max(axis=1) - 1
        return violation
