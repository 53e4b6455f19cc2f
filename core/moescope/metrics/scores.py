"""Router probabilities and selection scores, rebuilt from stored logits where that gives back what was recorded.

A trace stores raw logits and, per token, the entropy and the margin that the router itself reported. Which function
lies between (softmax, sigmoid, none) is not assumed: each is tried against what was reported, and none is used that
disagrees.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import numpy as np

from moescope.metrics.view import LayerView

CHECK_TOKENS: Final = 1024


def softmax(logits_TE: np.ndarray) -> np.ndarray:
    """float32 [T, E], rows sum to 1."""
    exp_TE = np.exp(logits_TE - logits_TE.max(axis=1, keepdims=True))
    probs: np.ndarray = exp_TE / exp_TE.sum(axis=1, keepdims=True)
    return probs


def sigmoid(logits_TE: np.ndarray) -> np.ndarray:
    """float32 [T, E], elementwise."""
    scores: np.ndarray = 0.5 * (1 + np.tanh(0.5 * logits_TE))
    return scores


def sigmoid_share(logits_TE: np.ndarray) -> np.ndarray:
    """float32 [T, E]: sigmoid scores over their sum, the distribution of a sigmoid router (see `Routing.probs_TE`)."""
    scores_TE = sigmoid(logits_TE)
    shares: np.ndarray = scores_TE / scores_TE.sum(axis=1, keepdims=True)
    return shares


def identity(logits_TE: np.ndarray) -> np.ndarray:
    """The logits themselves."""
    return logits_TE


SCORES: Final[Mapping[str, Callable[[np.ndarray], np.ndarray]]] = MappingProxyType(
    {"softmax": softmax, "sigmoid": sigmoid, "logits": identity}
)


def alive_logits(view: LayerView) -> np.ndarray | None:
    """float32 [T, E] over alive experts; None where the trace has none, or where one is not finite."""
    logits = view.data.logits_TE
    if logits is None or not logits.size or logits.shape[1] <= int(view.experts.max(initial=0)):
        return None
    alive_TE = logits[:, view.experts].astype(np.float32, copy=False)
    return alive_TE if np.isfinite(alive_TE).all() else None


def probs(view: LayerView) -> np.ndarray | None:
    """float32 [T, E]: the router's distribution, if a softmax or sigmoid of the logits has the recorded entropy."""
    logits_TE = alive_logits(view)
    if logits_TE is None:
        return None
    check = _spread(logits_TE.shape[0])
    for kind in (softmax, sigmoid_share):
        if _agrees(entropy(kind(logits_TE[check])), view.data.entropy_T[check]):
            return kind(logits_TE)
    return None


def entropy(probs_TE: np.ndarray) -> np.ndarray:
    """Entropy of each row in nats, 0 log 0 = 0."""
    logs = np.log(probs_TE, out=np.zeros_like(probs_TE), where=probs_TE > 0)
    total: np.ndarray = -(probs_TE * logs).sum(axis=-1)
    return total


def mean_distribution_entropy(view: LayerView) -> float | None:
    """H(mean_i p_i) in nats, over alive experts; None where the router reported no distribution."""
    total = float(view.mean_probs_E.sum())
    return float(entropy(view.mean_probs_E[None] / total)[0]) if np.isfinite(total) and total > 0 else None


def margin_of(scores_TE: np.ndarray, k: int) -> np.ndarray:
    """[T]: k-th largest score minus the next; k < E."""
    ranked = np.partition(scores_TE, (scores_TE.shape[1] - k - 1, scores_TE.shape[1] - k), axis=1)
    gap: np.ndarray = ranked[:, -k] - ranked[:, -k - 1]
    return gap


def margin_score(view: LayerView, k: int) -> str | None:
    """Which of `SCORES` ranked the experts, judged by the recorded margins; None if none of them."""
    logits_TE = alive_logits(view)
    if logits_TE is None:
        return None
    check = _spread(logits_TE.shape[0])
    for name, kind in SCORES.items():
        if _agrees(margin_of(kind(logits_TE[check]), k), view.data.margin_T[check]):
            return name
    return None


def _spread(total: int) -> np.ndarray:
    return np.unique(np.linspace(0, max(total - 1, 0), min(total, CHECK_TOKENS)).astype(np.int64))


def _agrees(computed: np.ndarray, recorded: np.ndarray) -> bool:
    known = np.isfinite(recorded)
    return bool(known.any() and np.isclose(computed[known], recorded[known], rtol=1e-3, atol=1e-3).mean() > 0.995)
