"""UMAP: deterministic, faithful to clusters, silent about warnings, sound on degenerate vectors."""

from __future__ import annotations

import importlib
import inspect
from itertools import pairwise
from typing import Any

import numpy as np
import pynndescent
import pytest
from sklearn.metrics import silhouette_score

from moescope.projection import project, project_series, warm_up
from moescope.projection.base import Projection
from moescope.projection.layout import SLOW_TO_COMPILE
from moescope.projection.neighbours import nearest


@pytest.fixture(scope="module", autouse=True)
def _warm() -> None:
    warm_up()


def clusters(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """400 vectors of 16 features in 5 clusters, and the cluster of each."""
    n, d, num, apart = 400, 16, 5, 4.0
    rng = np.random.default_rng(seed)
    label = rng.integers(0, num, n)
    return (rng.normal(size=(num, d))[label] * apart + rng.normal(size=(n, d))).astype(np.float32), label


def test_umap_keeps_clusters_apart_and_neighbours_together() -> None:
    vectors, label = clusters()
    made = project(vectors, "umap")
    assert silhouette_score(made.xy, label) > 0.7
    assert made.trustworthiness > 0.95
    assert made.explained is None and made.neighbours == 15


def test_the_seed_decides_the_map() -> None:
    vectors, _ = clusters()
    first, again, other = project(vectors, "umap"), project(vectors, "umap"), project(vectors, "umap", seed=1)
    np.testing.assert_array_equal(first.xy, again.xy)
    assert first.key == again.key != other.key
    assert not np.array_equal(first.xy, other.xy)


def test_what_numba_compiles_slowly_still_goes_by_these_names() -> None:
    for module, name in SLOW_TO_COMPILE:
        assert callable(getattr(importlib.import_module(module), name).enable_caching)


def test_progress_rises_to_its_end_and_an_exception_in_it_ends_the_work() -> None:
    vectors, _ = clusters()
    told: list[tuple[str, float]] = []
    plain = project(vectors, "umap")
    shown = project(vectors, "umap", progress=lambda stage, done: told.append((stage, done)))
    np.testing.assert_array_equal(plain.xy, shown.xy)
    done = [part for _, part in told]
    assert done == sorted(done) and done[0] == 0.0 and done[-1] <= 1.0
    assert told[0][0] == "finding neighbours"
    assert {"placing points", "judging the map"} <= {stage for stage, _ in told}

    def stop(stage: str, part: float) -> None:
        if stage == "placing points":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        project(vectors, "umap", progress=stop)
    np.testing.assert_array_equal(project(vectors, "umap").xy, plain.xy)


@pytest.mark.parametrize("n", [1, 2, 3, 9])
def test_too_few_points_for_umap_are_placed_by_pca_and_told(n: int) -> None:
    vectors = np.random.default_rng(0).normal(size=(n, 4))
    made = project(vectors, "umap")
    np.testing.assert_array_equal(made.xy, project(vectors, "pca").xy)
    assert made.note == f"Too few points for UMAP ({n}): placed by PCA."


@pytest.mark.parametrize(
    "vectors",
    [
        np.ones((40, 3)),
        np.repeat(np.eye(4), 10, axis=0),
        np.arange(30.0)[:, None],
        np.concatenate([np.zeros((20, 5)), 1e4 * np.ones((20, 5))]),
    ],
    ids=["all equal", "four points", "one feature", "two points far apart"],
)
def test_degenerate_vectors_stay_finite(vectors: np.ndarray) -> None:
    made = project(vectors, "umap")
    assert made.xy.shape == (len(vectors), 2) and np.isfinite(made.xy).all()


def test_neighbours_are_exact_and_include_the_vector_itself() -> None:
    vectors, _ = clusters()
    index, distance = nearest(vectors, 15, 0)
    full = np.linalg.norm(vectors[:, None] - vectors[None, :], axis=2)
    np.testing.assert_allclose(distance, np.sort(full, axis=1)[:, :15], atol=1e-3)
    np.testing.assert_array_equal(index[:, 0], np.arange(len(vectors)))


def test_beyond_the_exact_size_neighbours_come_from_pynndescent_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numba compiles the real one for 20 s: benchmarks/projection.py prints its recall, its call is checked here."""
    signature = inspect.signature(pynndescent.NNDescent.__init__)
    asked: dict[str, Any] = {}

    class Recorded:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            asked.update(signature.bind(self, *args, **kwargs).arguments)
            self.neighbor_graph = (np.ones((50, 4), np.int32), np.ones((50, 4), np.float64))

    monkeypatch.setattr(pynndescent, "NNDescent", Recorded)
    monkeypatch.setattr("moescope.projection.neighbours.EXACT_UP_TO", 50 * 50 * 3 - 1)
    index, distance = nearest(np.zeros((50, 3), np.float32), 4, seed=9)
    assert (asked["n_neighbors"], asked["random_state"]) == (4, 9)
    assert index.dtype == np.int64 and distance.dtype == np.float32 and index.shape == (50, 4)


def moved(maps: list[Projection]) -> float:
    """Median over points of the step from map to map, over the map's own size."""
    return float(np.median([np.linalg.norm(b.xy - a.xy, axis=1) / a.xy.std() for a, b in pairwise(maps)]))


def test_a_series_moves_less_than_maps_of_their_own_and_is_as_faithful() -> None:
    target, _ = clusters(seed=1)
    start = np.random.default_rng(2).normal(size=target.shape)
    steps = [((1 - part) * start + part * target).astype(np.float32) for part in (0.5, 0.6, 0.7, 0.8)]
    series = project_series(steps, "umap")
    alone = [project(step, "umap") for step in steps]
    np.testing.assert_array_equal(series[0].xy, alone[0].xy)
    assert moved(series) < 0.5 * moved(alone)
    for ours, own in zip(series, alone, strict=True):
        assert ours.trustworthiness > own.trustworthiness - 0.01
