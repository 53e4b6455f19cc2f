"""Turning one map to another, and PCA series."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from moescope.errors import InputError
from moescope.projection import project, project_series, turn_to


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_turned_moved_mirrored_map_is_turned_back(mirrored: bool) -> None:
    rng = np.random.default_rng(0)
    xy = rng.normal(size=(50, 2))
    turn = Rotation.from_euler("z", 70, degrees=True).as_matrix()[:2, :2]
    other = (xy * [1, -1] if mirrored else xy) @ turn + [3, -8]
    np.testing.assert_allclose(turn_to(other, xy), xy, atol=1e-5)


def test_turning_changes_no_distance() -> None:
    rng = np.random.default_rng(1)
    xy, target = rng.normal(size=(30, 2)), rng.normal(size=(30, 2)) * 5
    turned = turn_to(xy, target)
    between = np.linalg.norm(xy[:, None] - xy, axis=2)
    np.testing.assert_allclose(np.linalg.norm(turned[:, None] - turned, axis=2), between, atol=1e-5)
    best = np.square(turned - target).sum()
    for angle in np.linspace(0, 2 * np.pi, 40):
        spin = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        assert np.square((xy - xy.mean(0)) @ spin + target.mean(0) - target).sum() >= best - 1e-3


def test_a_pca_series_does_not_flip_when_components_change_places() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(size=(300, 2))
    steps = [np.pad(base * [1 + part, 2 - part], ((0, 0), (0, 3))) for part in (0.3, 0.45, 0.55, 0.7)]
    series = project_series(steps, "pca")
    for before, after in pairwise(series):
        assert np.linalg.norm(after.xy - before.xy, axis=1).max() < 1.0
    alone = [project(step, "pca") for step in steps]
    assert np.linalg.norm(alone[2].xy - alone[1].xy, axis=1).max() > 2.0
    assert series[2].trustworthiness == pytest.approx(alone[2].trustworthiness, abs=1e-6)


def test_steps_of_other_points_are_refused() -> None:
    with pytest.raises(InputError, match=r"start from has 20 points, but there are 21 vectors"):
        project_series([np.ones((20, 3)), np.ones((21, 3))], "pca")
    assert project_series([], "pca") == []
