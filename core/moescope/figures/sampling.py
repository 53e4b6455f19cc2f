"""Choosing fewer points without hiding small groups."""

from __future__ import annotations

import numpy as np


def stratified(group_n: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Positions, ascending, of at most `size` points; each group keeps its share, and one point where there is room.

    `group_n` is an integer per point. Shares are rounded by largest remainder; the choice within a group is random
    under `seed`.
    """
    n = len(group_n)
    if n <= size:
        return np.arange(n)
    _, group, count_G = np.unique(group_n, return_inverse=True, return_counts=True)
    quota = np.maximum(count_G * size / n, 1.0 if len(count_G) <= size else 0.0)
    quota *= size / quota.sum()
    take_G = np.floor(quota).astype(np.int64)
    if len(count_G) <= size:
        take_G = np.maximum(take_G, 1)
    while (missing := size - int(take_G.sum())) != 0:
        order = np.argsort(take_G - quota if missing > 0 else quota - take_G, kind="stable")
        room = take_G[order] < count_G[order] if missing > 0 else take_G[order] > 1
        take_G[order[room][: abs(missing)]] += 1 if missing > 0 else -1
    order = np.lexsort((np.random.default_rng(seed).random(n), group))
    rank = np.arange(n) - np.r_[0, np.cumsum(count_G)[:-1]][group[order]]
    return np.sort(order[rank < take_G[group[order]]])
