"""Scatter of router inputs within experts over that between them: one number for tight clusters far apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np

from moescope.metrics.base import Measurement, Metric, numbers
from moescope.metrics.view import LayerView

NULL_CELLS: Final = 2e9
FEWEST_SHUFFLES: Final = 20


class WithinBetween(Metric):
    """tr W / tr B of router inputs, clustered by each token's best expert; Euclidean.

    tr W = sum_e sum_{i in e} |h_i - m_e|^2, tr B = sum_e n_e |m_e - m|^2, in the original space, never the 2-D map.
    Lower is tighter. With shuffled labels it is about (n - E) / (E - 1), so it falls when experts are added: read it
    against its null.
    """

    name = "within_between"
    title = "Within / between scatter of router inputs"
    definition = "tr W / tr B, W the scatter around each best expert's mean, B that of the means around the whole mean."
    null = "Expert labels shuffled among the same vectors."
    caveat = (
        "Lower is tighter. More experts lower it by themselves, the null too: compare value with null at each step. "
        "The router cuts this very space, so something below the null is no discovery."
    )
    unit = "ratio"
    tensor = "layer.{layer}.hidden"
    source = "Fisher 1936; the ratio behind Calinski and Harabasz 1974"
    tail = "lower"
    details: ClassVar[Mapping[str, str]] = {
        "shuffles": "label shuffles that were drawn",
        "experts": "ids of experts that are the best of at least one sampled token",
        "per_expert": "mean squared distance of each such expert's tokens from their mean",
        "tokens": "sampled tokens of each such expert",
    }

    def compute(self, view: LayerView) -> Iterator[Measurement]:
        hidden, sample = view.data.hidden_nd, view.view.trace.sample
        if hidden is None or sample is None or hidden.shape[0] == 0:
            yield self.missing(view, "the trace holds no hidden vectors")
            return
        top_n = view.data.top1_T[sample]
        used = (top_n >= 0) & np.isfinite(hidden).all(axis=1)
        experts, label_n = np.unique(top_n[used], return_inverse=True)
        if experts.size < 2:
            yield self.missing(view, "the sampled tokens have fewer than two best experts", n=int(label_n.size))
            return
        vectors = hidden[used].astype(np.float64)
        yield self._of(view, vectors - vectors.mean(axis=0), label_n, experts, sample[used])

    def _of(
        self, view: LayerView, centred_nd: np.ndarray, label_n: np.ndarray, experts: np.ndarray, tokens_n: np.ndarray
    ) -> Measurement:
        n, num = int(label_n.size), int(experts.size)
        sums = _Sums(*grouped(centred_nd, label_n, num), total=float((centred_nd**2).sum()))
        value = sums.ratio()
        if value is None:
            return self.missing(view, "the experts' mean vectors coincide", n=n)
        shuffles = min(view.view.permutations, max(FEWEST_SHUFFLES, int(NULL_CELLS / centred_nd.size)))
        rng = view.view.rng("scatter", view.layer)
        draws = (
            _Sums(*grouped(centred_nd, rng.permutation(label_n), num), total=sums.total).ratio()
            for _ in range(shuffles)
        )
        own_E = np.bincount(label_n, weights=((centred_nd - sums.means()[label_n]) ** 2).sum(axis=1), minlength=num)
        return self.result(
            view,
            value,
            n=n,
            draws_P=np.array([draw for draw in draws if draw is not None]),
            replicates_B=_replicates(view, centred_nd, label_n, num, tokens_n),
            bounds=(0.0, np.inf),
            detail={
                "shuffles": shuffles,
                "experts": tuple(int(expert) for expert in experts),
                "per_expert": numbers(own_E / sums.count_E),
                "tokens": numbers(sums.count_E),
            },
        )


@dataclass(frozen=True)
class _Sums:
    """What the ratio needs: vectors per expert [E], their sum [E, d], and the sum of all squared lengths."""

    count_E: np.ndarray
    sum_Ed: np.ndarray
    total: float

    def means(self) -> np.ndarray:
        means: np.ndarray = self.sum_Ed / np.maximum(self.count_E, 1e-12)[:, None]
        return means

    def ratio(self) -> float | None:
        """tr W / tr B; None where all means coincide."""
        n = float(self.count_E.sum())
        used = self.count_E > 0
        if n == 0 or not used.any():
            return None
        own = float(((self.sum_Ed[used] ** 2).sum(axis=1) / self.count_E[used]).sum())
        between = own - float((self.sum_Ed.sum(axis=0) ** 2).sum()) / n
        if between <= 1e-12 * max(self.total, 1e-300):
            return None
        return max(self.total - own, 0.0) / between


def grouped(centred_nd: np.ndarray, label_n: np.ndarray, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors per label, float64 [E], and their sum, float64 [E, d]."""
    from scipy.sparse import csr_array

    n = label_n.size
    member = csr_array((np.ones(n), (label_n, np.arange(n))), shape=(num, n))
    return np.bincount(label_n, minlength=num).astype(np.float64), np.asarray(member @ centred_nd)


def _replicates(
    view: LayerView, centred_nd: np.ndarray, label_n: np.ndarray, num: int, tokens_n: np.ndarray
) -> np.ndarray:
    """float64 [B]: the ratio of resampled documents (or blocks), each expert's tokens summed once per unit."""
    from scipy.sparse import csr_array

    unit_n, weights_BU = view.view.unit_T[tokens_n], view.view.weights_BU
    if np.unique(unit_n).size < 2:
        return np.empty(0)
    rows, row_n = np.unique(unit_n * num + label_n, return_inverse=True)
    count_R, sum_Rd = grouped(centred_nd, row_n, rows.size)
    square_R = np.bincount(row_n, weights=(centred_nd**2).sum(axis=1), minlength=rows.size)
    made: list[Any] = []
    for weight_R in weights_BU[:, rows // num]:
        adds = csr_array((weight_R, (rows % num, np.arange(rows.size))), shape=(num, rows.size))
        one = _Sums(np.asarray(adds @ count_R), np.asarray(adds @ sum_Rd), float(weight_R @ square_R)).ratio()
        made.append(np.nan if one is None else one)
    return np.array(made, np.float64)
