"""Coefficient of variation of the load."""

from __future__ import annotations

import numpy as np

from moescope.metrics.balance import BalanceMetric, load_ratios


class LoadCV(BalanceMetric):
    """Standard deviation of the load over experts (population), over its mean."""

    name = "load_cv"
    title = "CV of load"
    definition = "std_e(load_e) / mean_e(load_e), population standard deviation over alive experts."
    caveat = "Even random routing scores about sqrt((E - k) / (k T)), not 0."
    unit = "mean loads"
    source = "Shazeer et al. 2017 (1701.06538), Eq. 7 and 11 (there squared)"

    def of_counts(self, counts_NE: np.ndarray) -> np.ndarray:
        deviation: np.ndarray = load_ratios(counts_NE).std(axis=1)
        return deviation
