"""PCA against scikit-learn, its sign, and vectors that have no plane."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA

from moescope.projection import project


def spread_vectors(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Vectors whose variance falls from feature to feature, in a random basis."""
    rng = np.random.default_rng(seed)
    scales = 5.0 / (1 + np.arange(d)) ** 0.7
    basis = np.linalg.qr(rng.normal(size=(d, d)))[0]
    return ((rng.normal(size=(n, d)) * scales) @ basis + 3).astype(np.float32)


@pytest.mark.parametrize("dense_up_to", [512, 20], ids=["dense", "lanczos"])
@pytest.mark.parametrize(("n", "d"), [(300, 5), (40, 90), (120, 60)])
def test_pca_is_scikit_learns_up_to_sign(n: int, d: int, dense_up_to: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moescope.projection.pca.DENSE_UP_TO", dense_up_to)
    vectors = spread_vectors(n, d)
    oracle = PCA(n_components=2, svd_solver="full").fit(vectors.astype(np.float64))
    expected = oracle.transform(vectors.astype(np.float64))
    made = project(vectors, "pca")
    signs = np.sign((made.xy * expected).sum(axis=0))
    np.testing.assert_allclose(made.xy * signs, expected, atol=1e-3)
    assert made.explained == pytest.approx(tuple(oracle.explained_variance_ratio_), abs=1e-5)


def test_the_sign_is_decided_by_the_data_not_by_the_solver() -> None:
    vectors = spread_vectors(200, 6)
    flipped = project(vectors[::-1].copy(), "pca").xy[::-1]
    np.testing.assert_allclose(flipped, project(vectors, "pca").xy, atol=1e-4)
    centred = vectors - vectors.mean(axis=0)
    loading = centred.T @ project(vectors, "pca").xy
    strongest = np.abs(loading).argmax(axis=0)
    assert (loading[strongest, [0, 1]] > 0).all()


def test_vectors_on_a_line_have_no_second_coordinate() -> None:
    line = np.outer(np.arange(20), [1.0, 2.0, 2.0])
    made = project(line, "pca")
    np.testing.assert_allclose(made.xy[:, 1], 0, atol=1e-4)
    np.testing.assert_allclose(np.diff(made.xy[:, 0]), 3, atol=1e-4)
    assert made.explained == pytest.approx((1.0, 0.0), abs=1e-9)


@pytest.mark.parametrize("shape", [(1, 4), (2, 1), (3, 3), (5, 2)])
def test_equal_vectors_and_very_few_stay_finite(shape: tuple[int, int]) -> None:
    for vectors in (np.ones(shape), np.random.default_rng(0).normal(size=shape)):
        made = project(vectors, "pca")
        assert made.xy.shape == (shape[0], 2) and made.xy.dtype == np.float32
        assert np.isfinite(made.xy).all()
