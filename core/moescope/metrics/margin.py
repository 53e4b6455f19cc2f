"""Margin: how clearly the last chosen expert beat the first that was not chosen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import ClassVar, Final

import numpy as np

from moescope.metrics.base import Measurement, Metric
from moescope.metrics.scores import SCORES, alive_logits, margin_of, margin_score
from moescope.metrics.view import LayerView

NULL_ROWS: Final = 20_000
TIE: Final = "A tie, 0: {why}, so that no shuffled logits could be scored (no z, no p)."


class Margin(Metric):
    """Mean over tokens of (score of the last chosen expert - score of the first not chosen).

    A permutation of one token's logits among experts leaves its margin as it is, so the null shuffles across tokens:
    each expert's logits are permuted among tokens, independently of the other experts'. That keeps what each expert
    says and how often, roughly its load, and breaks their agreement on a token. Rows of the null are independent, so
    the mean of n of them has mean mu_0 and variance s_0^2 / n; both are estimated from up to 20,000 shuffled rows, z
    counts that estimate's own error, and p is two-sided from the normal law.
    """

    name = "margin"
    title = "Margin"
    definition = "mean_i (score of the last chosen expert - score of the first not chosen), as selection ranked them."
    null = "Experts that score independently: each expert's logits shuffled among tokens, then scored and ranked alike."
    caveat = "Comparable only where the same kind of score is ranked; tokens of one text are dependent: z overstates."
    unit = "score"
    tensor = "layer.{layer}.margin"
    source = "moescope"
    tail = "both"
    details: ClassVar[Mapping[str, str]] = {
        "median": "median margin",
        "p05": "5th percentile of the margin",
        "score": "what was ranked, as recognised from the logits (softmax, sigmoid, logits); null if none of these",
        "bf16_flips": "share of tokens whose choice changes or ties with bfloat16 logits; null where these do not rank",
    }

    def compute(self, view: LayerView) -> Iterator[Measurement]:
        margin_T = view.data.margin_T.astype(np.float64)
        known = np.flatnonzero(np.isfinite(margin_T))
        if known.size == 0:
            yield self.missing(view, "no token had both a chosen and a refused expert with a score")
            return
        margin_n = margin_T[known]
        score, why = self._score(view)
        median, p05 = np.quantile(margin_n, (0.5, 0.05))
        detail = {"median": float(median), "p05": float(p05), "score": score, "bf16_flips": bf16_flips(view)}
        result = self.result(
            view,
            float(margin_n.mean()),
            n=int(known.size),
            null=0.0,
            replicates_B=view.view.mean_replicates(margin_n, known),
            null_kind=TIE.format(why=why),
            detail=detail,
        )
        logits_TE = alive_logits(view)
        yield result if score is None or logits_TE is None else self._beside_shuffled(view, result, score, logits_TE)

    @staticmethod
    def _score(view: LayerView) -> tuple[str | None, str]:
        picks = np.unique(view.picks_T[view.picks_T > 0])
        if picks.size != 1 or picks[0] >= view.num_experts:
            return None, "the number of experts per token varies"
        if alive_logits(view) is None:
            return None, "the trace holds no logits"
        score = margin_score(view, int(picks[0]))
        return score, "what selection ranked is no plain function of the stored logits"

    def _beside_shuffled(self, view: LayerView, result: Measurement, score: str, logits_TE: np.ndarray) -> Measurement:
        from scipy.special import ndtr

        rng = view.view.rng(self.name, view.layer)
        rows_RE = rng.integers(logits_TE.shape[0], size=(NULL_ROWS, view.num_experts))
        shuffled_RE = SCORES[score](np.take_along_axis(logits_TE, rows_RE, axis=0))
        null_R = margin_of(shuffled_RE, int(view.picks_T.max())).astype(np.float64)
        mean, spread = float(null_R.mean()), float(null_R.std(ddof=1))
        z = p = None
        if spread > 0 and result.value is not None:
            z = (result.value - mean) / (spread * float(np.sqrt(1 / result.n + 1 / NULL_ROWS)))
            p = float(max(2 * ndtr(-abs(z)), np.finfo(float).tiny))
        null_std = spread / float(np.sqrt(result.n))
        return replace(result, null=mean, null_std=null_std, z=z, p=p, null_kind=self.null)


def bf16_flips(view: LayerView) -> float | None:
    """Share of tokens whose set of experts changes or ties when logits are rounded to bfloat16.

    None where logits are not stored, or do not themselves rank the experts (a bias, a capacity, a random draw).
    """
    logits_TE = alive_logits(view)
    if logits_TE is None:
        return None
    chosen_TE = np.zeros(logits_TE.shape, bool)
    chosen_TE[view.assignments] = True
    partly_T = chosen_TE.any(axis=1) & ~chosen_TE.all(axis=1)
    if not partly_T.any():
        return None
    logits_TE, chosen_TE = logits_TE[partly_T], chosen_TE[partly_T]
    if (_gap(logits_TE, chosen_TE) >= 0).mean() < 0.999:
        return None
    return float((_gap(round_bf16(logits_TE), chosen_TE) <= 0).mean())


def _gap(logits_TE: np.ndarray, chosen_TE: np.ndarray) -> np.ndarray:
    lowest_T = np.where(chosen_TE, logits_TE, np.inf).min(axis=1)
    gap: np.ndarray = lowest_T - np.where(chosen_TE, -np.inf, logits_TE).max(axis=1)
    return gap


def round_bf16(values: np.ndarray) -> np.ndarray:
    """float32 rounded to bfloat16 (nearest, ties to even), as float32. Finite values only."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    result: np.ndarray = rounded.view(np.float32)
    return result
