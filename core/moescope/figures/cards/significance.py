"""Is a share larger than elsewhere, when tokens of one document are not independent? A test for each kind of label.

Shapes: U units, C columns (experts) tested, P random subsets.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy import stats

MOST_PERMUTED, SUBSETS = 64, 4999


def permuted(chosen_UC: np.ndarray, tokens_U: np.ndarray, member_U: np.ndarray) -> np.ndarray:
    """float64 [C]: one-sided p of the members' share under permutation of the units' labels.

    For a label of whole documents: any other set of as many units would have done. `SUBSETS` random sets, the given one
    counted among them, so that p is never 0 (Phipson and Smyth 2010).
    """
    drawn_PU = _subsets(member_U.size, int(member_U.sum()))
    both_PC = drawn_PU @ np.column_stack([chosen_UC, tokens_U]).astype(np.float32)  # counts, exact below 2**24
    share_PC = both_PC[:, :-1].astype(np.float64) / both_PC[:, -1:]
    share_C = chosen_UC[member_U].sum(0) / tokens_U[member_U].sum()
    p_C: np.ndarray = (1 + (share_PC >= share_C - 1e-9).sum(0)) / (1 + len(drawn_PU))
    return p_C


@lru_cache(maxsize=16)
def _subsets(num_units: int, size: int) -> np.ndarray:
    """float32 [SUBSETS, U]: 1 where a unit is in the random subset of so many units."""
    order = np.random.default_rng([num_units, size]).random((SUBSETS, num_units))
    drawn = np.zeros((SUBSETS, num_units), np.float32)
    np.put_along_axis(drawn, np.argpartition(order, size - 1, axis=1)[:, :size], 1.0, axis=1)
    drawn.flags.writeable = False
    return drawn


def clustered(
    mine_UC: np.ndarray, mine_U: np.ndarray, other_UC: np.ndarray, other_U: np.ndarray, degrees: int
) -> np.ndarray:
    """float64 [C]: one-sided p that the share among `mine_U` tokens exceeds that among `other_U` tokens.

    Student's t of the difference of two ratios, its variance linearised over units and never below the binomial one.
    """
    num_units = np.count_nonzero(mine_U + other_U)
    share_C, rest_C = mine_UC.sum(0) / mine_U.sum(), other_UC.sum(0) / other_U.sum()
    moved_UC = (mine_UC - mine_U[:, None] * share_C) / mine_U.sum()
    moved_UC -= (other_UC - other_U[:, None] * rest_C) / other_U.sum()
    over_units_C = (moved_UC**2).sum(0) * num_units / (num_units - 1)
    pooled_C = (mine_UC + other_UC).sum(0) / (mine_U + other_U).sum()
    binomial_C = pooled_C * (1 - pooled_C) * (1 / mine_U.sum() + 1 / other_U.sum())
    t_C = (share_C - rest_C) / np.sqrt(np.maximum(over_units_C, binomial_C))
    p_C: np.ndarray = stats.t.sf(t_C, degrees)
    return p_C
