"""The laws of `mass`: against a loop over numbers, its false alarms, and what it must and must not answer to."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch

from expansion_views import view
from moescope.config import parse
from moescope.errors import InputError
from moescope.expansion.base import Finding
from moescope.expansion.mass import Mass, MassConfig


def detector(num_slots: int = 1, **options: Any) -> Mass:
    return Mass(parse(MassConfig, {"omega": 6, "warmup": 8, **options}), num_slots)


def run(mass: Mass, norms: np.ndarray, **known: Any) -> list[Finding]:
    """Findings of [steps, E] norms; a negative norm is a step in which the expert got no token."""
    told = []
    for step, row in enumerate(norms):
        norm_E = torch.tensor(np.abs(row))
        told.append(mass.look(view(step, norm_E, sent_E=torch.tensor(row > 0).long() * 5, **known)))
    return told


def loop(norms: list[float], omega: int, warmup: int, calibrated: bool = False) -> list[tuple[float, float]]:
    """z and p of one expert after each step, NaN where there is none; methods' steps 1 and 2 as they are written."""
    seen: list[float] = []
    zs: list[float] = []
    told = []
    for norm in norms:
        z = math.nan
        if norm > 0:
            seen.append(norm)
            if len(seen) >= 3:
                last = np.array(seen[-omega:])
                std = last.std(ddof=1)
                z = float((norm - last.mean()) / std) if std > 0 else 0.0
                zs.append(z)
        p = math.nan
        if len(seen) > warmup and len(zs) >= omega:
            s = sum(zs[-omega:]) / math.sqrt(omega)
            p = 1 - NormalDist().cdf(s / math.sqrt(2 / 3) if calibrated else s)
        told.append((z, p))
    return told


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize(("omega", "warmup"), [(3, 0), (6, 8), (6, 20)])
def test_it_is_its_loop(omega: int, warmup: int, calibrated: bool) -> None:
    draw = np.random.default_rng(omega + warmup)
    norms = draw.gamma(5.0, size=(60, 4)) * np.where(draw.random((60, 4)) < 0.2, -1, 1)
    told = run(detector(4, omega=omega, warmup=warmup, calibrated=calibrated), norms)
    for e in range(4):
        expected = np.array(loop(norms[:, e].tolist(), omega, warmup, calibrated))
        for column, signal in enumerate(("z", "p_value")):
            got = [float(finding.signals[signal][e]) for finding in told]
            np.testing.assert_allclose(got, expected[:, column], rtol=1e-9, atol=1e-9)


def test_z_keeps_its_own_times_mean_and_standard_deviation() -> None:
    """Standardised anew by the window of today, the sum is 0 for ever; as it is, a rise shows."""
    norms = np.random.default_rng(0).gamma(5.0, size=200) * np.linspace(1, 3, 200)
    told = run(detector(omega=20, warmup=0), norms[:, None])
    own = np.array([float(finding.signals["z"][0]) for finding in told])
    sums = np.array([own[t - 19 : t + 1].sum() for t in range(30, 200)])
    assert np.abs(sums).min() > 1e-3 and sums.mean() > 1
    for t in range(30, 200):
        window = norms[t - 19 : t + 1]
        assert abs(((window - window.mean()) / window.std(ddof=1)).sum()) < 1e-10


@pytest.mark.parametrize("calibrated", [False, True])
def test_false_alarms_under_independent_norms_are_at_most_alpha(calibrated: bool) -> None:
    """4000 experts, one test each, once both windows are full; and the statistic's variance is 2/3."""
    num, omega, alpha = 4000, 20, 0.01
    norms = np.random.default_rng(1).lognormal(sigma=0.3, size=(2 * omega + 5, num))
    last = run(detector(num, omega=omega, warmup=0, alpha=alpha, calibrated=calibrated, c=1e6), norms)[-1]
    rate = float(last.fired_E.double().mean())
    bound = alpha + 3 * math.sqrt(alpha * (1 - alpha) / num)
    assert rate <= (bound if calibrated else alpha)
    p_E = last.signals["p_value"].clamp(1e-12, 1 - 1e-12)
    s_E = torch.tensor([NormalDist().inv_cdf(1 - float(p)) for p in p_E])
    assert float(s_E.var()) == pytest.approx(1.0 if calibrated else 2 / 3, rel=0.1)


def test_autocorrelated_norms_raise_false_alarms() -> None:
    """What the paper's test does not allow for."""
    num, draw = 2000, np.random.default_rng(2)
    noise = np.zeros((60, num))
    for t in range(1, 60):
        noise[t] = 0.8 * noise[t - 1] + draw.normal(size=num)
    last = run(detector(num, omega=20, warmup=0, c=1e6), np.exp(0.2 * noise))[-1]
    assert float(last.fired_E.double().mean()) > 0.03


def test_a_rising_norm_fires_and_a_falling_one_never() -> None:
    steps = np.arange(100)
    noise = 1 + 0.02 * np.random.default_rng(3).normal(size=(2, 100))
    norms = np.stack([(1 + 0.05 * steps) * noise[0], noise[1] / (1 + 0.05 * steps)], axis=1)
    told = run(detector(2, omega=10), norms)
    fired = torch.stack([finding.fired_E for finding in told])
    assert fired[30:, 0].float().mean() > 0.9 and not fired[:, 1].any()
    assert all(finding.chosen in (None, 0) for finding in told)


def test_it_fires_only_where_the_gradient_is_orthogonal_to_the_weights() -> None:
    norms = np.repeat(np.linspace(1, 3, 60)[:, None], 3, axis=1)
    cos_E = torch.tensor([0.0999, -0.0999, 0.1001], dtype=torch.float64)
    last = run(detector(3), norms, cos_E=cos_E, size=400)[-1]  # c / sqrt(400) = 0.1
    assert last.fired_E.tolist() == [True, True, False]
    assert last.thresholds["cosine"].at == pytest.approx(0.1) and last.thresholds["cosine"].fires == "below"
    assert last.signals["cosine"].tolist() == pytest.approx([0.0999, 0.0999, 0.1001])
    absolute = run(detector(3, delta="absolute"), norms, cos_E=torch.tensor([9e-4, 2e-3, 0.1]).double())[-1]
    assert absolute.fired_E.tolist() == [True, False, False]


@pytest.mark.parametrize("level", [1.0, 0.1, 1e-9, 0.0])
def test_equal_norms_have_z_zero(level: float) -> None:
    told = run(detector(omega=7, warmup=0), np.full((40, 1), level) + 0.0)
    zs = [float(finding.signals["z"][0]) for finding in told[2:]]
    if level:
        assert zs == [0.0] * 38 and float(told[-1].signals["p_value"][0]) == 0.5


def test_a_step_without_tokens_is_no_sample_and_never_fires() -> None:
    draw = np.random.default_rng(4).gamma(5.0, size=60) * np.linspace(1, 4, 60)
    gaps = np.full((120, 1), -100.0)
    gaps[::2, 0] = draw
    dense, sparse = run(detector(alpha=0.2), draw[:, None]), run(detector(alpha=0.2), gaps)
    p = [float(finding.signals["p_value"][0]) for finding in dense]
    assert [float(finding.signals["p_value"][0]) for finding in sparse[::2]] == pytest.approx(p, nan_ok=True)
    assert any(finding.fired_E[0] for finding in sparse) and not any(finding.fired_E[0] for finding in sparse[1::2])


def test_after_a_growth_count_and_windows_of_source_and_copy_start_again() -> None:
    norms = np.random.default_rng(5).gamma(5.0, size=(80, 3))
    mass, fresh = detector(3), detector(3)
    run(mass, norms[:30])
    mass.grown(0, 2)
    after, alone = run(mass, norms[30:]), run(fresh, norms[30:])
    for a, b in zip(after, alone, strict=True):
        for e in (0, 2):
            torch.testing.assert_close(a.signals["p_value"][e], b.signals["p_value"][e], equal_nan=True, rtol=0, atol=0)
    assert not math.isnan(float(after[0].signals["p_value"][1])), "the others go on"


def test_of_several_that_fire_the_lowest_p_value_is_chosen() -> None:
    steps, draw = np.arange(60), np.random.default_rng(6)
    noise = draw.normal(size=(60, 3))
    norms = 20 + noise * [3.0, 0.1, 1.0] + 0.2 * steps[:, None]
    told = [finding for finding in run(detector(3), norms) if finding.fired_E.sum() > 1]
    assert told
    for finding in told:
        p_E = finding.signals["p_value"].masked_fill(~finding.fired_E, 9)
        assert finding.chosen is not None and p_E[finding.chosen] == p_E.min()


def test_before_both_windows_are_full_it_tests_only_if_told_to() -> None:
    norms = np.random.default_rng(7).gamma(5.0, size=(12, 1))
    waits = [not math.isnan(float(f.signals["p_value"][0])) for f in run(detector(omega=10, warmup=4), norms)]
    early = [
        not math.isnan(float(f.signals["p_value"][0]))
        for f in run(detector(omega=10, warmup=4, full_windows=False), norms)
    ]
    assert waits == [False] * 11 + [True] and early == [False] * 4 + [True] * 8
    with pytest.raises(InputError, match="full windows only"):
        detector(calibrated=True, full_windows=False)
