"""Trustworthiness against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.manifold import trustworthiness as oracle

from moescope.projection.quality import trustworthiness


@pytest.mark.parametrize(("n", "d"), [(20, 3), (200, 10), (900, 30)])
def test_small_maps_score_exactly_as_in_scikit_learn(n: int, d: int) -> None:
    rng = np.random.default_rng(n)
    vectors = rng.normal(size=(n, d)).astype(np.float32)
    for xy in (vectors[:, :2], rng.normal(size=(n, 2))):
        score, k = trustworthiness(vectors, xy)
        assert score == pytest.approx(oracle(vectors, xy, n_neighbors=k), abs=1e-4)


def test_large_maps_are_judged_without_bias_from_query_points() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(2000, 8)).astype(np.float32)
    exact = oracle(vectors, vectors[:, :2], n_neighbors=15)
    found = [trustworthiness(vectors, vectors[:, :2], seed=seed)[0] for seed in range(8)]
    assert found[0] != found[1]
    assert np.mean(found) == pytest.approx(exact, abs=0.004)
    assert max(abs(score - exact) for score in found) < 0.012


def test_the_plane_itself_scores_one_and_four_points_are_the_fewest() -> None:
    xy = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    assert trustworthiness(xy, xy * 3 + 1)[0] == 1.0
    assert np.isnan(trustworthiness(xy[:3], xy[:3])[0])
    assert np.isfinite(trustworthiness(xy[:4], xy[:4])[0])
