from __future__ import annotations

import math

import pytest

from moescope.train.schedule import learning_rate

RATE = {"peak": 0.4, "warmup": 4, "steps": 24, "final": 0.1}


def test_warm_up_is_linear_and_ends_at_the_peak() -> None:
    assert [learning_rate(step, **RATE) for step in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_cosine_starts_at_the_peak_is_half_way_in_the_middle_and_ends_at_the_final_share() -> None:
    assert learning_rate(4, **RATE) == pytest.approx(0.4)
    assert learning_rate(14, **RATE) == pytest.approx((0.4 + 0.04) / 2)
    assert learning_rate(24, **RATE) == pytest.approx(0.04)


def test_cosine_matches_torch() -> None:
    import torch

    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.4)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20, eta_min=0.04)
    for step in range(4, 24):
        assert learning_rate(step, **RATE) == pytest.approx(reference.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        reference.step()


@pytest.mark.parametrize("warmup", [0, 1, 24])
def test_every_rate_is_positive_and_at_most_the_peak(warmup: int) -> None:
    rates = [learning_rate(step, peak=0.4, warmup=warmup, steps=24, final=0.1) for step in range(24)]
    assert all(0 < rate <= 0.4 and math.isfinite(rate) for rate in rates)
    assert max(rates) == pytest.approx(0.4)
