"""Laws of every detector in the registry, and those of the simple ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from expansion_views import D, E, drawn, view
from moescope.config import parse
from moescope.expansion import DETECTORS
from moescope.expansion.base import Detector, Finding, State

SENSITIVE: dict[str, dict[str, Any]] = {
    "mass": {"omega": 4, "warmup": 2, "alpha": 0.4, "c": 40.0},
    "page_hinkley": {"delta": 0.0, "lam": 0.2, "min_samples": 3},
    "conflict": {"every": 3, "window": 3, "fall": 1.0, "fewest": 3, "statistic": 0.0, "explained": 0.0},
    "coverage": {"every": 3},
    "random": {"rate": 0.3},
}
every_detector = pytest.mark.parametrize("name", DETECTORS)


def build(name: str, seed: int = 0) -> Detector:
    kind = DETECTORS[name]
    return kind(parse(kind.Config, SENSITIVE.get(name, {})), E, seed)


def same(a: Finding, b: Finding) -> bool:
    signals = all(torch.equal(a.signals[name].nan_to_num(-9), b.signals[name].nan_to_num(-9)) for name in a.signals)
    extra = all(
        (x is None and y is None) or (x is not None and y is not None and torch.equal(x, y))
        for x, y in ((a.direction_d, b.direction_d), (a.row_d, b.row_d))
    )
    decided = (a.chosen, a.drop, a.note, dict(a.thresholds)) == (b.chosen, b.drop, b.note, dict(b.thresholds))
    return a.signals.keys() == b.signals.keys() and signals and extra and decided and torch.equal(a.fired_E, b.fired_E)


def copied(state: State) -> State:
    return {name: value.clone() for name, value in state.items()}


@every_detector
def test_it_is_deterministic_and_a_restored_one_goes_on_bit_for_bit(name: str) -> None:
    one, two, other = build(name), build(name), build(name, seed=3)
    fired = 0
    for step in range(24):
        a, b = one.look(drawn(step)), two.look(drawn(step))
        assert same(a, b)
        fired += a.chosen is not None or bool(a.drop)
        if a.chosen is not None and step % 2:
            one.grown(a.chosen, E - 1), two.grown(a.chosen, E - 1)
        if step == 13:
            kept = copied(one.state())
            two = build(name)
            two.restore(kept)
    assert fired > 0 or name == "never", "it never fires, so this shows little"
    assert other.state().keys() == one.state().keys()


@every_detector
def test_state_that_was_given_does_not_change_afterwards(name: str) -> None:
    detector = build(name)
    for step in range(5):
        detector.look(drawn(step))
    state = detector.state()
    before = copied(state)
    for step in range(5, 15):
        detector.look(drawn(step))
        detector.grown(0, E - 1)
    assert all(torch.equal(state[key].nan_to_num(-9), before[key].nan_to_num(-9)) for key in before)


@every_detector
def test_relabelled_experts_are_judged_alike(name: str) -> None:
    if name in ("random", "conflict"):
        pytest.skip("who is drawn, and which tokens are, follows the expert's number")
    order_E = torch.tensor([2, 0, 4, 1, 3])
    one, two = build(name), build(name)
    for step in range(20):
        a, b = one.look(drawn(step)), two.look(drawn(step, order_E))
        assert torch.equal(a.fired_E[order_E], b.fired_E)
        for signal, value_E in a.signals.items():
            torch.testing.assert_close(value_E[order_E], b.signals[signal], equal_nan=True)
        if a.chosen is not None:
            assert b.chosen is not None and int(order_E[b.chosen]) == a.chosen
        assert sorted(int(order_E[slot]) for slot in b.drop) == sorted(a.drop)


@every_detector
def test_dead_slots_never_fire_and_chosen_ones_fired(name: str) -> None:
    detector = build(name)
    for step in range(20):
        finding = detector.look(drawn(step))
        assert not finding.fired_E[E - 1] and E - 1 not in finding.drop
        assert finding.chosen is None or bool(finding.fired_E[finding.chosen])
        assert set(finding.thresholds) <= set(finding.signals)
        assert all(value_E.dtype == torch.float64 and value_E.shape == (E,) for value_E in finding.signals.values())


# page_hinkley


def page_hinkley_loop(norms: list[float], delta: float) -> list[float]:
    total, rise, least, told = 0.0, 0.0, 0.0, []
    for count, norm in enumerate(norms, 1):
        total += norm
        rise += norm / (total / count) - 1 - delta
        least = min(least, rise)
        told.append(rise - least)
    return told


def run(detector: Detector, norms: np.ndarray) -> list[Finding]:
    return [detector.look(view(step, torch.tensor(row, dtype=torch.float64))) for step, row in enumerate(norms)]


def test_page_hinkley_is_its_loop() -> None:
    kind = DETECTORS["page_hinkley"]
    detector = kind(parse(kind.Config, {"delta": 0.03, "lam": 1.0, "min_samples": 5}), 3)
    norms = np.random.default_rng(0).gamma(4.0, size=(60, 3)) * np.linspace(1, 2, 60)[:, None]
    told = run(detector, norms)
    for e in range(3):
        expected = page_hinkley_loop(norms[:, e].tolist(), 0.03)
        got = [float(finding.signals["page_hinkley"][e]) for finding in told]
        assert np.isnan(got[:4]).all()
        np.testing.assert_allclose(got[4:], expected[4:], rtol=1e-12)
        assert [bool(finding.fired_E[e]) for finding in told] == [t >= 4 and x > 1.0 for t, x in enumerate(expected)]


def test_page_hinkley_fires_on_a_rise_and_not_on_a_fall() -> None:
    steps = np.linspace(1, 2, 120)
    detector = DETECTORS["page_hinkley"](DETECTORS["page_hinkley"].Config(), 2)
    told = run(detector, np.stack([steps, 1 / steps], axis=1))
    assert any(bool(finding.fired_E[0]) for finding in told)
    assert not any(bool(finding.fired_E[1]) for finding in told)


# coverage


def coverage(**options: Any) -> Detector:
    return DETECTORS["coverage"](parse(DETECTORS["coverage"].Config, {"every": 3, **options}), E)


def lost(unreached: int, mean_d: Tensor) -> dict[str, Any]:
    return {"unreached": unreached, "unreached_mean": lambda: mean_d if unreached else None, "nearest": lambda d: 2}


def test_coverage_adds_an_expert_at_the_mean_of_all_tokens_that_reached_none() -> None:
    detector = coverage()
    means, counts = torch.randn(3, D), (2, 0, 5)
    told = [detector.look(view(s, **lost(n, m))) for s, (n, m) in enumerate(zip(counts, means, strict=True))]
    assert [finding.chosen for finding in told] == [None, None, 2]
    assert told[2].row_d is not None
    torch.testing.assert_close(told[2].row_d, (2 * means[0] + 5 * means[2]) / 7)
    assert detector.look(view(3, **lost(1, means[1]))).chosen is None, "it counts anew"


def test_coverage_never_fires_where_every_token_reaches_an_expert() -> None:
    detector = coverage()
    assert not any(bool(detector.look(view(step, **lost(0, torch.ones(D)))).fired_E.any()) for step in range(30))


def test_coverage_drops_whom_no_token_reached_in_the_whole_window() -> None:
    detector, never = coverage(), coverage(drop=False)
    sent = torch.tensor([[1, 0, 3, 0, 0], [0, 0, 4, 1, 0], [2, 0, 0, 0, 0]])
    alive_E = torch.arange(E) < 4
    looks = [view(step, sent_E=row, alive_E=alive_E) for step, row in enumerate(sent)]
    assert [detector.look(each).drop for each in looks] == [(), (), (1,)]
    assert [never.look(each).drop for each in looks] == [(), (), ()]


def test_coverage_keeps_the_expert_that_it_copies() -> None:
    detector = coverage()
    sent = torch.tensor([0, 4, 0, 3, 0])
    last = [detector.look(view(step, sent_E=sent, **lost(1, torch.ones(D)))) for step in range(3)][-1]
    assert last.chosen == 2, "no token reached it, but unreached ones lie nearest to it"
    assert 2 not in last.drop and 0 in last.drop


def test_coverage_waits_for_the_share_that_it_was_given() -> None:
    for unreached, fires in ((4, False), (5, True)):
        detector = coverage(share=0.1)
        last = [detector.look(view(step, **lost(unreached, torch.ones(D)))) for step in range(3)][-1]
        assert (last.chosen is not None) == fires


# random


def test_random_fires_at_its_rate_and_draws_all_alike() -> None:
    kind = DETECTORS["random"]
    detector = kind(parse(kind.Config, {"rate": 0.25}), E, seed=7)
    chosen = [detector.look(view(step)).chosen for step in range(4000)]
    fired = [expert for expert in chosen if expert is not None]
    assert abs(len(fired) / 4000 - 0.25) < 0.03
    assert np.bincount(fired, minlength=E).min() > 0.7 * len(fired) / E
    again = kind(parse(kind.Config, {"rate": 0.25}), E, seed=8)
    assert [again.look(view(step)).chosen for step in range(100)] != chosen[:100]
