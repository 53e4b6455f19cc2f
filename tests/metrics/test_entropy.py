"""Entropies of the router's distribution against scipy, with their exact nulls."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit, softmax
from scipy.stats import entropy

from moescope.metrics import measure
from moescope.trace.schema import Trace
from routed import routed_trace


def soft_trace(logits: np.ndarray, kind: str = "softmax", k: int = 2) -> Trace:
    """A router of these logits that says itself what its probabilities are."""
    probs = softmax(logits, axis=1) if kind == "softmax" else expit(logits) / expit(logits).sum(1, keepdims=True)
    return routed_trace(
        np.argsort(-logits, axis=1)[:, :k],
        logits.shape[1],
        doc=np.arange(len(logits)) // 25,
        logits_TE=logits.astype(np.float32),
        entropy_T=entropy(probs, axis=1).astype(np.float32),
        mean_probs_E=probs.mean(axis=0),
    )


@pytest.fixture
def logits() -> np.ndarray:
    lean = np.array([1, 0, 0, 0, 0, -1])
    return np.random.default_rng(0).normal(scale=2, size=(500, 6)) + lean


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_values_and_nulls_are_scipys_entropies(kind: str, logits: np.ndarray) -> None:
    trace = soft_trace(logits, kind)
    probs = softmax(logits, axis=1) if kind == "softmax" else expit(logits) / expit(logits).sum(1, keepdims=True)
    routing, effective, load = measure(trace, ["routing_entropy", "effective_experts", "load_entropy"])
    mean, whole = entropy(probs, axis=1).mean(), entropy(probs.mean(axis=0))
    assert routing.value == pytest.approx(mean, abs=1e-5)
    assert routing.null == pytest.approx(whole) and (routing.null_std, routing.z, routing.p) == (None, None, None)
    assert routing.detail["soft_mutual_information"] == pytest.approx(whole - mean, abs=1e-5)
    assert effective.value == pytest.approx(np.exp(mean), abs=1e-5)
    assert effective.null == pytest.approx(np.exp(whole))
    assert effective.detail["inverse_simpson"] == pytest.approx((1 / (probs**2).sum(axis=1)).mean(), rel=1e-4)
    assert load.value == pytest.approx(whole) and load.null == pytest.approx(np.log(6))
    assert load.interval is not None and load.interval[0] < load.value < load.interval[1]


def test_a_router_that_ignores_the_token_scores_its_null() -> None:
    trace = soft_trace(np.tile([1.0, 0.5, 0.0, -2.0], (200, 1)))
    for found in measure(trace, ["routing_entropy", "effective_experts"]):
        assert found.value == pytest.approx(found.null, abs=1e-6)


def test_a_uniform_router_weighs_every_expert_and_a_sure_one_a_single() -> None:
    (uniform,) = measure(soft_trace(np.zeros((100, 5))), ["effective_experts"])
    assert (uniform.value, uniform.detail["inverse_simpson"]) == pytest.approx((5, 5))
    (sure,) = measure(soft_trace(60 * np.eye(5)[np.arange(100) % 5]), ["effective_experts"])
    assert (sure.value, sure.detail["inverse_simpson"], sure.null) == pytest.approx((1, 1, 5))


def test_without_logits_what_needs_them_is_left_out_and_said(logits: np.ndarray) -> None:
    trace = soft_trace(logits)
    bare = replace(trace, layers={3: replace(trace.layers[3], logits_TE=None)})
    routing, effective, load = measure(bare, ["routing_entropy", "effective_experts", "load_entropy"])
    assert routing == measure(trace, ["routing_entropy"])[0]
    assert effective.detail["inverse_simpson"] is None
    assert load.interval is None and load.note.startswith("No interval")


def test_logits_that_do_not_give_the_recorded_entropy_are_not_taken_for_probabilities(logits: np.ndarray) -> None:
    trace = soft_trace(logits)
    cooled = replace(trace.layers[3], logits_TE=(logits * 3).astype(np.float32))
    (found,) = measure(replace(trace, layers={3: cooled}), ["effective_experts"])
    assert found.detail["inverse_simpson"] is None


def test_tokens_without_an_entropy_are_left_out_of_n(logits: np.ndarray) -> None:
    trace = soft_trace(logits)
    entropies = trace.layers[3].entropy_T.copy()
    entropies[:100] = np.nan
    (found,) = measure(replace(trace, layers={3: replace(trace.layers[3], entropy_T=entropies)}), ["routing_entropy"])
    assert found.n == 400 and found.value == pytest.approx(float(entropies[100:].astype(float).mean()))
