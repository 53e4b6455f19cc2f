"""Silhouettes against scikit-learn, exact and from query points, and their null."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import silhouette_samples, silhouette_score

from moescope.metrics import Measurement, measure
from moescope.metrics.silhouette import silhouettes, spread_queries
from routed import routed_trace

FAST = {"permutations": 30, "bootstrap": 40}
NAMES = {"silhouette": "euclidean", "silhouette_cosine": "cosine"}


def clustered(
    n: int = 400, num: int = 5, apart: float = 1.5, d: int = 12, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = rng.choice(num, n, p=rng.dirichlet(np.full(num, 5.0)))
    return (rng.normal(size=(num, d))[label] * apart + rng.normal(size=(n, d))).astype(np.float32), label


def one(trace, name: str, **options) -> Measurement:
    (found,) = measure(trace, [name], **{**FAST, **options})
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shift", [0.0, 500.0])
def test_the_exact_value_is_scikit_learns(name: str, shift: float) -> None:
    vectors, label = clustered()
    vectors = vectors + np.float32(shift) * np.eye(12, dtype=np.float32)[0]
    found = one(routed_trace(label, 5, hidden_nd=vectors), name)
    wide = vectors.astype(np.float64)
    tolerance = 1e-4 if shift == 0 or name == "silhouette" else 5e-3  # all cosines near 1 far from the origin
    assert found.value == pytest.approx(silhouette_score(wide, label, metric=NAMES[name]), abs=tolerance)
    assert found.detail["exact"] is True and found.n == found.detail["queries"] == 400
    of_expert = silhouette_samples(wide, label, metric=NAMES[name])
    for expert, mean, tokens in zip(*(found.detail[key] for key in ("experts", "per_expert", "tokens")), strict=True):
        assert mean == pytest.approx(of_expert[label == expert].mean(), abs=tolerance)
        assert tokens == (label == expert).sum()


def test_singletons_and_equal_vectors_score_as_in_scikit_learn() -> None:
    vectors, label = clustered(60, 3)
    label[7], label[9] = 3, 4
    vectors[20:25] = vectors[20]
    found = one(routed_trace(label, 5, hidden_nd=vectors), "silhouette")
    assert found.value == pytest.approx(silhouette_score(vectors, label), abs=1e-4)
    same = one(routed_trace(np.arange(20) % 2, 2, hidden_nd=np.ones((20, 3), np.float32)), "silhouette")
    assert same.value == 0.0
    zero = np.concatenate([np.zeros((3, 4)), np.random.default_rng(0).normal(size=(30, 4))]).astype(np.float32)
    by = np.arange(33) % 3
    assert one(routed_trace(by, 3, hidden_nd=zero), "silhouette_cosine").value == pytest.approx(
        silhouette_score(zero, by, metric="cosine"), abs=1e-4
    )


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_query_points_against_all_points_are_unbiased_and_close(distance: str) -> None:
    """Each query's own value is exact; their mean is off by no more than 1,000 independent points would be."""
    vectors, label = clustered(6000, 12, apart=0.4, d=24)
    truth = silhouette_samples(vectors, label, metric=distance)
    query = spread_queries(label, 1000, np.random.default_rng(0))
    assert np.unique(query).size == 1000
    np.testing.assert_allclose(silhouettes(vectors, label[None], query, distance)[0], truth[query], atol=1e-4)
    means = [truth[spread_queries(label, 1000, np.random.default_rng(seed))].mean() for seed in range(200)]
    assert np.mean(means) == pytest.approx(truth.mean(), abs=3 * np.std(means) / np.sqrt(200))
    assert np.std(means) < 1.1 * truth.std() / np.sqrt(1000)


def test_every_token_is_equally_likely_to_be_a_query() -> None:
    label = np.repeat([0, 1, 2], [50, 3, 7])
    asked = np.zeros(60)
    for seed in range(4000):
        asked[spread_queries(label, 11, np.random.default_rng(seed))] += 1
    np.testing.assert_allclose(asked / 4000, 11 / 60, atol=0.03)


def test_beyond_the_exact_size_the_measure_says_that_it_asked_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moescope.metrics.silhouette.EXACT_UP_TO", 900)
    vectors, label = clustered(3000)
    trace = routed_trace(label, 5, hidden_nd=vectors, doc=np.arange(3000) // 50)
    found = one(trace, "silhouette")
    assert found.detail["exact"] is False
    assert (found.detail["queries"], found.detail["vectors"], found.n) == (1000, 3000, 3000)
    assert found.note == "1,000 query vectors against all 3,000."
    assert found.value == pytest.approx(silhouette_score(vectors, label), abs=0.015)
    assert found.interval[0] < silhouette_score(vectors, label) < found.interval[1]


def test_the_null_is_scikit_learns_value_of_shuffled_labels() -> None:
    vectors, label = clustered()
    found = one(routed_trace(label, 5, hidden_nd=vectors), "silhouette", permutations=60)
    rng = np.random.default_rng(9)
    shuffled = [silhouette_score(vectors, rng.permutation(label)) for _ in range(60)]
    assert found.null == pytest.approx(np.mean(shuffled), abs=4 * np.std(shuffled) / np.sqrt(60))
    assert found.null_std == pytest.approx(np.std(shuffled), rel=0.5)
    assert found.z > 10 and found.p == pytest.approx(1 / 61)


def test_labels_that_ignore_the_vectors_are_within_the_null() -> None:
    vectors, _ = clustered()
    p = [
        one(
            routed_trace(np.random.default_rng(seed).integers(0, 5, 400), 5, hidden_nd=vectors), "silhouette", seed=seed
        ).p
        for seed in range(30)
    ]
    assert 0.25 < np.mean(p) < 0.75


def test_only_the_best_expert_of_sampled_tokens_counts() -> None:
    vectors, label = clustered(200)
    experts = np.stack([label, (label + 1) % 5], axis=1)
    experts[:10] = -1
    trace = routed_trace(experts, 5, hidden_nd=vectors)
    found = one(trace, "silhouette")
    assert found.n == 190
    assert found.value == pytest.approx(silhouette_score(vectors[10:], label[10:]), abs=1e-4)
    sampled = np.arange(0, 200, 2)
    layer = replace(trace.layers[3], hidden_nd=vectors[sampled])
    half = replace(trace, sample=sampled.astype(np.int32), layers={3: layer})
    assert one(half, "silhouette").value == pytest.approx(silhouette_score(vectors[10::2], label[10::2]), abs=1e-4)


def test_without_vectors_or_with_one_expert_there_is_no_silhouette() -> None:
    assert (
        one(routed_trace(np.arange(10) % 2, 2), "silhouette").note
        == "not enough data: the trace holds no hidden vectors"
    )
    single = one(routed_trace(np.zeros(10), 2, hidden_nd=np.ones((10, 3), np.float32)), "silhouette")
    assert single.value is None and "fewer than two" in single.note


def test_vectors_that_are_not_finite_are_left_out() -> None:
    vectors, label = clustered(100)
    vectors[4, 2] = np.nan
    found = one(routed_trace(label, 5, hidden_nd=vectors), "silhouette")
    assert found.n == 99 and np.isfinite(found.value)
