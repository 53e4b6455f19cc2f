"""Load ratio: how much more than its fair share each expert receives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from moescope.metrics.balance import BalanceMetric, load_ratios
from moescope.metrics.base import numbers
from moescope.metrics.view import LayerView


class LoadRatio(BalanceMetric):
    """Largest load_e / (1/E) over alive experts; every expert's own ratio, null and interval are in the detail."""

    name = "load_ratio"
    title = "Load ratio"
    definition = "load_e / (1/E) of each expert, load_e its share of the assignments; the value is the largest."
    caveat = "Chance alone spreads the ratios by about 1/sqrt(assignments per expert); busy is not the same as useful."
    unit = "times the mean load"
    source = "Fedus et al. 2021 (2101.03961), the f_e of Eq. 4-5, times E"
    details: ClassVar[Mapping[str, str]] = {
        "experts": "ids of the alive experts",
        "ratio": "load ratio per expert",
        "null_std": "its standard deviation under even random routing (whose mean is 1)",
        "z": "(ratio - 1) / null_std per expert",
        "p": "two-sided p per expert, against all experts' draws pooled (they are exchangeable under the null)",
        "low": "lower end of the 95 % interval per expert",
        "high": "upper end of the 95 % interval per expert",
        "min": "smallest ratio",
        "max": "largest ratio",
        "max_over_min": "largest over smallest ratio; null where an expert got nothing",
    }

    def of_counts(self, counts_NE: np.ndarray) -> np.ndarray:
        largest: np.ndarray = load_ratios(counts_NE).max(axis=1)
        return largest

    def detail(self, view: LayerView) -> dict[str, Any]:
        ratio_E = load_ratios(view.counts_E[None])[0]
        picks_T = view.picks_T
        chance_T = picks_T / view.num_experts
        std = float(np.sqrt((chance_T * (1 - chance_T)).sum()) / view.counts_E.mean())
        low_E = high_E = np.full(view.num_experts, np.nan)
        ratio_BE = load_ratios(view.counts_BE[view.counts_BE.sum(axis=1) > 0])
        if ratio_BE.shape[0] >= 20:
            low_E, high_E = np.quantile(ratio_BE, (0.025, 0.975), axis=0)
        smallest = float(ratio_E.min())
        return {
            "experts": tuple(int(expert) for expert in view.experts),
            "ratio": numbers(ratio_E),
            "null_std": (std,) * view.num_experts,
            "z": tuple(float(r - 1) / std if std > 0 else None for r in ratio_E),
            "p": numbers(_two_sided(ratio_E, load_ratios(view.null_counts_PE))),
            "low": tuple(None if np.isnan(low) else float(low) for low in low_E),
            "high": tuple(None if np.isnan(high) else float(high) for high in high_E),
            "min": smallest,
            "max": float(ratio_E.max()),
            "max_over_min": float(ratio_E.max()) / smallest if smallest > 0 else None,
        }


def _two_sided(ratio_E: np.ndarray, null_PE: np.ndarray) -> np.ndarray:
    pool = np.sort(null_PE.ravel())
    slack = 1e-9
    above_E = pool.size - np.searchsorted(pool, ratio_E - slack, side="left")
    below_E = np.searchsorted(pool, ratio_E + slack, side="right")
    p_E: np.ndarray = np.minimum(1.0, 2 * (1 + np.minimum(above_E, below_E)) / (pool.size + 1))
    return p_E
