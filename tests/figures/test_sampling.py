"""Stratified thinning keeps size, shares and small groups."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moescope.figures.sampling import stratified


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(-1, 12), min_size=1, max_size=300), st.integers(1, 320), st.integers(0, 5))
def test_keeps_the_size_and_the_groups(groups: list[int], size: int, seed: int) -> None:
    group = np.array(groups)
    kept = stratified(group, size, seed)
    assert len(kept) == min(size, len(group)) == len(np.unique(kept))
    assert (np.diff(kept) > 0).all() and kept[0] >= 0 and kept[-1] < len(group)
    if size >= len(np.unique(group)):
        assert set(group[kept]) == set(group)


@pytest.mark.parametrize("size", [50, 173, 999])
def test_shares_are_kept_to_within_a_point(size: int) -> None:
    group = np.repeat(np.arange(5), [2000, 1000, 500, 300, 200])
    shuffled = np.random.default_rng(0).permutation(group)
    taken = np.bincount(shuffled[stratified(shuffled, size, 0)], minlength=5)
    assert np.abs(taken - np.array([2000, 1000, 500, 300, 200]) * size / 4000).max() <= 1


def test_every_point_of_a_group_has_the_same_chance() -> None:
    group = np.repeat([0, 1], [60, 40])
    times = np.zeros(100)
    for seed in range(600):
        times[stratified(group, 20, seed)] += 1
    assert times.min() > 80 and times.max() < 160


def test_seed_decides() -> None:
    group = np.zeros(100, int)
    assert (stratified(group, 10, 3) == stratified(group, 10, 3)).all()
    assert (stratified(group, 10, 3) != stratified(group, 10, 4)).any()
