"""The margin: its value, the score it is of, its null, and choices that hang on bfloat16."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax

from moescope.metrics import measure
from moescope.metrics.margin import round_bf16
from moescope.trace.schema import Trace
from routed import routed_trace

SCORES = {"softmax": lambda z: softmax(z, axis=1), "sigmoid": expit, "logits": lambda z: z}


def scored_trace(logits: np.ndarray, kind: str = "softmax", k: int = 2) -> Trace:
    """Top-k of the scores, margin included; four documents."""
    scores = SCORES[kind](logits.astype(np.float64))
    ranked = -np.sort(-scores, axis=1)
    return routed_trace(
        np.argsort(-scores, axis=1)[:, :k],
        logits.shape[1],
        doc=np.arange(len(logits)) * 4 // len(logits),
        logits_TE=logits.astype(np.float32),
        margin_T=(ranked[:, k - 1] - ranked[:, k]).astype(np.float32),
    )


@pytest.mark.parametrize("kind", SCORES)
def test_the_ranked_score_is_recognised(kind: str) -> None:
    logits = np.random.default_rng(0).normal(size=(400, 8)) * 2
    trace = scored_trace(logits, kind)
    (found,) = measure(trace, ["margin"])
    assert found.detail["score"] == kind
    assert found.value == pytest.approx(float(trace.layers[3].margin_T.mean()), rel=1e-5)
    assert found.detail["median"] == pytest.approx(float(np.median(trace.layers[3].margin_T)), rel=1e-5)
    assert found.n == 400


def test_experts_that_score_independently_score_the_null() -> None:
    z = [
        measure(scored_trace(np.random.default_rng(seed).normal(size=(600, 8))), ["margin"], seed=seed, bootstrap=0)[
            0
        ].z
        for seed in range(60)
    ]
    assert np.mean(z) == pytest.approx(0, abs=0.5)
    assert np.std(z) == pytest.approx(1, abs=0.3)


def test_experts_that_agree_on_who_takes_a_token_beat_the_null() -> None:
    """Each token is wanted by one pair of four: logits are as spread as before, but never in each other's way."""
    rng = np.random.default_rng(0)
    pair = rng.integers(0, 4, 800)
    logits = rng.normal(size=(800, 8)) * 0.3 + 3 * (np.arange(8)[None] // 2 == pair[:, None])
    (found,) = measure(scored_trace(logits), ["margin"])
    assert found.value > found.null + 10 * found.null_std and found.p < 1e-10
    assert "independently" in found.null_kind


@pytest.mark.parametrize("why", ["no logits", "no plain function", "varies"])
def test_where_logits_cannot_be_shuffled_the_reference_is_a_tie_and_says_why(why: str) -> None:
    logits = np.random.default_rng(0).normal(size=(100, 6))
    trace = scored_trace(logits)
    layer = trace.layers[3]
    if why == "no logits":
        layer = replace(layer, logits_TE=None)
    elif why == "no plain function":
        layer = replace(layer, margin_T=layer.margin_T + np.linspace(0, 1, 100, dtype=np.float32))
    else:
        experts = layer.expert_TK.copy()
        experts[::2, 1] = -1
        layer = replace(layer, expert_TK=experts)
    (found,) = measure(replace(trace, layers={3: layer}), ["margin"])
    assert (found.null, found.null_std, found.z, found.p) == (0.0, None, None, None)
    assert found.null_kind.startswith("A tie, 0: ") and why in found.null_kind
    assert found.value is not None and found.interval is not None


def test_tokens_without_a_margin_are_left_out() -> None:
    trace = scored_trace(np.random.default_rng(0).normal(size=(100, 6)))
    margins = trace.layers[3].margin_T.copy()
    margins[:30] = np.nan
    (found,) = measure(replace(trace, layers={3: replace(trace.layers[3], margin_T=margins)}), ["margin"])
    assert found.n == 70 and found.value == pytest.approx(float(margins[30:].mean()), rel=1e-5)


def test_rounding_to_bfloat16_is_torchs() -> None:
    values = np.random.default_rng(0).normal(size=4000).astype(np.float32) * np.logspace(-20, 20, 4000).astype(
        np.float32
    )
    expected = torch.from_numpy(values).to(torch.bfloat16).to(torch.float32).numpy()
    np.testing.assert_array_equal(round_bf16(values), expected)


def test_choices_that_bfloat16_changes_are_counted_as_torch_would() -> None:
    logits = (4 + np.random.default_rng(0).normal(size=(2000, 16)) * 0.3).astype(np.float32)
    (found,) = measure(scored_trace(logits), ["margin"])
    rounded = torch.from_numpy(logits).to(torch.bfloat16).float().sort(dim=1, descending=True).values
    same = torch.from_numpy(logits).to(torch.bfloat16).float()
    chosen = torch.from_numpy(logits).topk(2).indices
    kept = same.gather(1, chosen).min(dim=1).values > rounded[:, 2]
    flips = 1 - kept.float().mean().item()
    assert 0.05 < flips < 0.5
    assert found.detail["bf16_flips"] == pytest.approx(flips, abs=1e-6)


def test_a_bias_that_ranks_leaves_bfloat16_flips_unsaid() -> None:
    logits = np.random.default_rng(0).normal(size=(300, 6))
    trace = scored_trace(logits)
    biased = np.argsort(-(logits + np.arange(6)), axis=1)[:, :2].astype(np.int32)
    (found,) = measure(replace(trace, layers={3: replace(trace.layers[3], expert_TK=biased)}), ["margin"])
    assert found.detail["bf16_flips"] is None
