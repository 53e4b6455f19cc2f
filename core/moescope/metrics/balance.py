"""What the measures of balance share: all are functions of assignments per expert, against even random routing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from moescope.metrics.base import Measurement, Metric
from moescope.metrics.view import LayerView


class BalanceMetric(Metric):
    """A function of the assignments per expert. A subclass writes `of_counts`."""

    null = "Even random routing: every token picks as many experts as it did, uniformly without replacement."
    tensor = "layer.{layer}.experts"
    bounds: ClassVar[tuple[float, float]] = (0.0, np.inf)
    recentre: ClassVar[bool] = True

    def of_counts(self, counts_NE: np.ndarray) -> np.ndarray:
        """The measure, [N], of N rows of assignments per expert; every row has at least one assignment."""
        raise NotImplementedError

    def detail(self, view: LayerView) -> dict[str, Any]:
        return {}

    def compute(self, view: LayerView) -> Iterator[Measurement]:
        n = int(np.count_nonzero(view.picks_T))
        if n == 0 or view.num_experts == 0:
            yield self.missing(view, "no token was assigned to an expert")
            return
        used_B = view.counts_BE.sum(axis=1) > 0
        yield self.result(
            view,
            float(self.of_counts(view.counts_E[None])[0]),
            n=n,
            draws_P=self.of_counts(view.null_counts_PE),
            replicates_B=self.of_counts(view.counts_BE[used_B]),
            recentre=self.recentre,
            bounds=self.bounds,
            notes=(view.dropped_note, self.sparse_note(view)),
            detail=self.detail(view),
        )

    @staticmethod
    def sparse_note(view: LayerView) -> str:
        mean = float(view.counts_E.mean())
        return f"Only {mean:.1f} assignments per expert: chance alone leaves large differences." if mean < 10 else ""


def load_ratios(counts_NE: np.ndarray) -> np.ndarray:
    """[N, E]: load of each expert over the mean load, E * load_e."""
    ratios: np.ndarray = counts_NE / counts_NE.mean(axis=1, keepdims=True)
    return ratios
