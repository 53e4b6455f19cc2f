"""Null laws and intervals that measures share. P draws from a null, B bootstrap replicates, E experts, T tokens."""

from __future__ import annotations

from typing import Literal

import numpy as np

Tail = Literal["upper", "lower", "both"]


def random_counts(picks_T: np.ndarray, num_experts: int, num_draws: int, rng: np.random.Generator) -> np.ndarray:
    """int64 [num_draws, E]: assignments per expert if every token picked as many experts as it did, evenly at random.

    Exact, without simulating tokens: walking over the experts, a token with r picks left among m experts left takes the
    next one with probability r/m, so the number of tokens with r picks left is all that has to be followed.
    """
    left = np.bincount(picks_T, minlength=1).astype(np.int64)
    most = left.size - 1
    left_RP = np.repeat(left[:, None], num_draws, axis=1)
    counts = np.zeros((num_draws, num_experts), np.int64)
    for expert in range(num_experts):
        remaining = num_experts - expert
        taken_RP = np.zeros_like(left_RP)
        for r in range(1, most + 1):
            taken_RP[r] = rng.binomial(left_RP[r], min(1.0, r / remaining))
        counts[:, expert] = taken_RP.sum(0)
        left_RP -= taken_RP
        left_RP[:-1] += taken_RP[1:]
    return counts


def tail_p(value: float, draws_P: np.ndarray, tail: Tail) -> float:
    """Permutation p-value with the observed value counted among the draws, hence never 0 (Phipson and Smyth 2010).

    Draws that equal the value up to rounding count as extreme: a permutation that changes nothing must not look like
    evidence.
    """
    slack = 1e-9 * max(1.0, abs(value))
    num = draws_P.size + 1
    upper = (1 + np.count_nonzero(draws_P >= value - slack)) / num
    lower = (1 + np.count_nonzero(draws_P <= value + slack)) / num
    if tail == "both":
        return float(min(1.0, 2 * min(upper, lower)))
    return float(upper if tail == "upper" else lower)


def interval95(
    value: float, replicates_B: np.ndarray, *, recentre: bool = True, bounds: tuple[float, float] = (-np.inf, np.inf)
) -> tuple[float, float] | None:
    """95 % bootstrap percentiles, cut at the measure's bounds; None where fewer than 20 replicates are defined.

    `recentre` moves the replicates' mean to the value: a plug-in estimate (mutual information, a maximum) is biased
    anew by every resample, and that second bias is not the value's spread.
    """
    known = replicates_B[np.isfinite(replicates_B)]
    if known.size < 20:
        return None
    low, high = np.quantile(known, (0.025, 0.975))
    shift = value - float(known.mean()) if recentre else 0.0
    return float(np.clip(low + shift, *bounds)), float(np.clip(high + shift, *bounds))
