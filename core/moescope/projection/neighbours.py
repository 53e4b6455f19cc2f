"""The k nearest neighbours of every vector: exact as long as that takes seconds, approximate beyond."""

from __future__ import annotations

from typing import Final

import numpy as np

EXACT_UP_TO: Final = 2e11
"""Products n * n * d up to which all distances are computed: 56,000 vectors of 64 features, 10,000 of 2,048. The other
way needs a smaller part of that, after 20 seconds in which numba compiles it."""


def nearest(vectors_nd: np.ndarray, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """int64 and float32 [n, k]: neighbours by Euclidean distance, nearest first, the vector itself among them."""
    n, d = vectors_nd.shape
    if float(n) * n * d <= EXACT_UP_TO:
        from sklearn.neighbors import NearestNeighbors

        search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(vectors_nd)
        distance_nk, index_nk = search.kneighbors(vectors_nd)
        return index_nk.astype(np.int64), distance_nk.astype(np.float32)
    from pynndescent import NNDescent

    graph = NNDescent(
        vectors_nd,
        n_neighbors=k,
        random_state=seed,
        n_trees=min(64, 5 + round(n**0.5 / 20)),
        n_iters=max(5, round(np.log2(n))),
        max_candidates=60,
    )
    index_nk, distance_nk = graph.neighbor_graph
    return index_nk.astype(np.int64), distance_nk.astype(np.float32)
