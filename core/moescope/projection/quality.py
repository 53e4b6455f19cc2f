"""How far to believe a map: trustworthiness, exact for small maps, of query points against all for large ones."""

from __future__ import annotations

from typing import Final

import numpy as np

NEIGHBOURS: Final = 15
QUERIES: Final = 500
CHUNK_CELLS: Final = 8_000_000


def trustworthiness(vectors_nd: np.ndarray, xy: np.ndarray, *, seed: int = 0) -> tuple[float, int]:
    """Share of each point's neighbours on the map that are its neighbours in the vectors' space, weighed by rank.

    T = 1 - 2 / (n k (2n - 3k - 1)) * sum_i sum_{j in U_k(i)} (r(i, j) - k) (Venna and Kaski 2001, Eq. 1): U_k(i) are
    the k nearest on the map that are not among the k nearest of the vectors, r(i, j) the rank of j among the vectors.
    All points are queries up to 2 x 500; beyond, 500 are, each against all points, which is unbiased (thinning the
    points is not). Returns T and k, which is 15, or less for fewer than 32 points; NaN for fewer than 4.
    """
    n = len(vectors_nd)
    k = min(NEIGHBOURS, (n - 1) // 2)
    if n < 4:
        return float("nan"), k
    query = np.arange(n)
    if n > 2 * QUERIES:
        query = np.sort(np.random.default_rng(seed).choice(n, QUERIES, replace=False))
    centred = vectors_nd - vectors_nd.mean(axis=0)
    excess = 0.0
    step = max(1, CHUNK_CELLS // n)
    for start in range(0, query.size, step):
        rows = query[start : start + step]
        far_qn = _squares(centred, rows)
        near_qk = np.argpartition(_squares(xy.astype(np.float32), rows), k - 1, axis=1)[:, :k]
        for place in range(k):
            there_q = np.take_along_axis(far_qn, near_qk[:, place, None], axis=1)
            rank_q = 1 + np.count_nonzero(far_qn < there_q, axis=1)
            excess += float(np.maximum(rank_q - k, 0).sum())
    return 1 - 2 * excess / (query.size * k * (2 * n - 3 * k - 1)), k


def _squares(vectors_nd: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """[q, n] squared distances of some vectors to all; infinite to themselves."""
    squares_n = np.einsum("nd,nd->n", vectors_nd, vectors_nd)
    cells: np.ndarray = squares_n[rows, None] + squares_n - 2 * (vectors_nd[rows] @ vectors_nd.T)
    cells[np.arange(rows.size), rows] = np.inf
    return cells
