"""Loads: known answers, the exact null of even random routing, calibrated p-values."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import binom, kstest, poisson_binom

from moescope.metrics import Measurement, measure
from moescope.metrics.nulls import interval95, random_counts, tail_p
from routed import routed_trace

UNEVEN = np.repeat([0, 1, 2, 3], [40, 30, 20, 10])


def only(trace, name: str, **options) -> Measurement:
    (found,) = measure(trace, [name], **options)
    return found


def test_known_loads_give_the_known_measures() -> None:
    trace = routed_trace(UNEVEN, 4)
    ratio = only(trace, "load_ratio")
    assert ratio.value == ratio.detail["max"] == pytest.approx(1.6)
    assert ratio.detail["ratio"] == pytest.approx((1.6, 1.2, 0.8, 0.4))
    assert ratio.detail["max_over_min"] == pytest.approx(4.0)
    assert only(trace, "maxvio").value == pytest.approx(0.6)
    assert only(trace, "load_cv").value == pytest.approx(np.std([40, 30, 20, 10]) / 25)
    assert only(trace, "dead_fraction").value == 0.0
    assert all(item.n == 100 for item in (ratio, only(trace, "maxvio")))


def test_perfectly_even_loads_are_more_even_than_chance() -> None:
    found = only(routed_trace(np.arange(400) % 8, 8), "maxvio")
    assert found.value == 0.0
    assert found.null > 0.1 and found.z < -1.5 and found.p == 1.0


def test_an_expert_below_one_percent_of_the_mean_is_dead() -> None:
    routed = np.concatenate([np.arange(3000) % 3, [3] * 6])
    found = only(routed_trace(routed, 5), "dead_fraction")
    assert found.value == pytest.approx(0.4)  # expert 3 has 6, the mean is 601.2, expert 4 has none
    assert found.detail["dead"] == (3, 4)
    assert found.null == 0.0 and found.p < 0.01
    few = only(routed_trace([0, 1, 2], 8), "dead_fraction")
    assert few.value == pytest.approx(5 / 8)
    assert few.null == pytest.approx((7 / 8) ** 3, abs=0.05)
    assert few.note.startswith("Only 0.4 assignments per expert")


@pytest.mark.parametrize(("experts", "k"), [(5, 1), (5, 2), (4, 4), (6, 3)])
def test_the_null_is_that_of_tokens_that_pick_k_experts_evenly(experts: int, k: int) -> None:
    """Against the mean and covariance of T draws of k-subsets, and of one draw, whose law is counted out."""
    rng = np.random.default_rng(0)
    counts = random_counts(np.full(30, k), experts, 20_000, rng)
    assert (counts.sum(axis=1) == 30 * k).all()
    share = k / experts
    np.testing.assert_allclose(counts.mean(axis=0), 30 * share, rtol=0.02)
    expected = np.full((experts, experts), -30 * share * (1 - share) / (experts - 1))
    np.fill_diagonal(expected, 30 * share * (1 - share))
    np.testing.assert_allclose(np.cov(counts.T), expected, atol=0.05 * 30 * share)
    single = random_counts(np.array([k]), experts, 20_000, rng)
    for subset in combinations(range(experts), k):
        drawn = (single[:, list(subset)] == 1).all(axis=1).mean()
        assert drawn == pytest.approx(1 / len(list(combinations(range(experts), k))), abs=0.02)


def test_the_null_keeps_how_many_experts_each_token_picked() -> None:
    picks = np.array([0] * 5 + [1] * 20 + [3] * 15)
    counts = random_counts(picks, 4, 20_000, np.random.default_rng(1))
    assert (counts.sum(axis=1) == picks.sum()).all() and counts.max() <= 35
    law = poisson_binom(picks / 4)
    for value in (12, 16, 20):
        assert (counts[:, 2] <= value).mean() == pytest.approx(law.cdf(value), abs=0.015)


def test_the_spread_of_one_experts_load_and_its_p_are_the_binomials() -> None:
    found = only(routed_trace(UNEVEN, 4), "load_ratio", permutations=5000)
    assert found.detail["null_std"][0] == pytest.approx(binom.std(100, 0.25) / 25)
    assert found.detail["z"] == pytest.approx([(r - 1) / found.detail["null_std"][0] for r in (1.6, 1.2, 0.8, 0.4)])
    for p, count in zip(found.detail["p"], (40, 30, 20, 10), strict=True):
        law = binom(100, 0.25)
        assert p == pytest.approx(min(1, 2 * min(law.cdf(count), law.sf(count - 1))), abs=0.02)


def test_the_null_of_cv_is_the_formula() -> None:
    rng = np.random.default_rng(0)
    routed = np.argsort(rng.random((4000, 16)), axis=1)[:, :4]
    found = only(routed_trace(routed, 16), "load_cv")
    assert found.null == pytest.approx(np.sqrt((16 - 4) / (4 * 4000)), rel=0.05)


@pytest.mark.parametrize("name", ["maxvio", "load_cv"])
def test_random_routing_has_uniform_p_values(name: str) -> None:
    rng = np.random.default_rng(7)
    found = [
        only(routed_trace(rng.integers(0, 6, 500), 6), name, seed=seed, permutations=99, bootstrap=0).p
        for seed in range(150)
    ]
    assert kstest(found, "uniform").pvalue > 0.005
    assert np.mean(np.array(found) <= 0.1) == pytest.approx(0.1, abs=0.07)


def test_documents_that_each_prefer_an_expert_widen_the_interval() -> None:
    """The same loads with and without documents: 20 documents that go whole to one expert say little about the next."""
    rng = np.random.default_rng(0)
    doc = np.repeat(np.arange(20), 100)
    whole = rng.integers(0, 4, 20)[doc]
    mixed = rng.permutation(whole)

    def width(routed: np.ndarray) -> float:
        low, high = only(routed_trace(routed, 4, doc=doc), "load_cv").interval
        return high - low

    assert width(whole) > 3 * width(mixed)


def test_one_document_is_resampled_in_blocks_and_says_so() -> None:
    found = only(routed_trace(UNEVEN, 4), "maxvio")
    assert found.interval is not None and found.note == "The interval resamples blocks of 64 tokens."
    assert only(routed_trace(UNEVEN[:50], 4), "maxvio").interval is None


def test_intervals_of_a_mean_cover_it_as_often_as_they_say() -> None:
    """95 % intervals over 40 documents that differ: nominal, less a little for the bootstrap's own error."""
    rng = np.random.default_rng(3)
    covered = 0
    for seed in range(150):
        doc = np.repeat(np.arange(40), rng.integers(20, 60, 40))
        sure = rng.beta(2, 2, 40)[doc]
        entropy = (sure + rng.normal(scale=0.3, size=doc.size)).astype(np.float32)
        trace = routed_trace(np.zeros(doc.size), 20, doc=doc, entropy_T=entropy)
        low, high = only(trace, "routing_entropy", seed=seed).interval
        covered += low <= 0.5 <= high
    assert 0.87 <= covered / 150 <= 0.995


def test_p_counts_the_value_among_the_draws_and_ties_as_extreme() -> None:
    draws = np.array([1.0, 2.0, 3.0])
    assert tail_p(2.5, draws, "upper") == 0.5
    assert tail_p(9.0, draws, "upper") == 0.25
    assert tail_p(3.0 + 1e-12, draws, "upper") == 0.5
    assert tail_p(0.0, draws, "lower") == 0.25
    assert tail_p(9.0, draws, "both") == 0.5
    assert tail_p(2.0, np.full(4, 2.0), "both") == 1.0


def test_an_interval_is_recentred_cut_and_not_made_from_too_little() -> None:
    replicates = np.linspace(1, 3, 201)
    low, high = interval95(1.0, replicates)
    assert (low, high) == pytest.approx((0.05, 1.95))
    assert interval95(1.0, replicates, recentre=False) == pytest.approx((1.05, 2.95))
    assert interval95(1.0, replicates, bounds=(0.5, 1.2)) == (0.5, 1.2)
    assert interval95(1.0, np.array([1.0] * 19 + [np.nan] * 50)) is None
