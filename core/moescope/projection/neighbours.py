"""The k nearest neighbours of every vector: exact up to 20,000 vectors, approximate beyond."""

from __future__ import annotations

from typing import Final

import numpy as np

EXACT_UP_TO: Final = 20_000


def nearest(vectors_nd: np.ndarray, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """int64 and float32 [n, k]: neighbours by Euclidean distance, nearest first, the vector itself among them."""
    if len(vectors_nd) <= EXACT_UP_TO:
        from sklearn.neighbors import NearestNeighbors

        search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(vectors_nd)
        distance_nk, index_nk = search.kneighbors(vectors_nd)
        return index_nk.astype(np.int64), distance_nk.astype(np.float32)
    from pynndescent import NNDescent

    n = len(vectors_nd)
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
