"""Dead fraction: experts that receive next to nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

import numpy as np

from moescope.metrics.balance import BalanceMetric, load_ratios
from moescope.metrics.view import LayerView

DEAD_BELOW: Final = 0.01


class DeadFraction(BalanceMetric):
    """Share of alive experts whose load is below 1 % of the mean. An empty slot (never allocated) is no expert."""

    name = "dead_fraction"
    title = "Dead experts"
    definition = "Share of experts with a load below 1 % of the mean load."
    caveat = "With few assignments per expert, chance alone leaves some without any: the null says how many."
    unit = "share of experts"
    source = "moescope; the 1 % threshold is a convention"
    details: ClassVar[Mapping[str, str]] = {"dead": "ids of the dead experts"}
    bounds = (0.0, 1.0)
    recentre = False

    def of_counts(self, counts_NE: np.ndarray) -> np.ndarray:
        share: np.ndarray = (load_ratios(counts_NE) < DEAD_BELOW).mean(axis=1)
        return share

    def detail(self, view: LayerView) -> dict[str, Any]:
        dead_E = load_ratios(view.counts_E[None])[0] < DEAD_BELOW
        return {"dead": tuple(int(expert) for expert in view.experts[dead_E])}
