"""`conflict`: its statistics against a loop that makes every outer product, their laws, and when it looks."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from moescope.errors import InputError
from moescope.expansion import DETECTORS
from moescope.expansion.base import Finding, Split, TokenGradients, View
from moescope.expansion.clone_direction import CloneDirection, CloneDirectionConfig
from moescope.expansion.conflict import Conflict, ConflictConfig, conflict

D, G = 6, 4


def halves(n: int, seed: int = 0) -> Tensor:
    first_n = torch.zeros(n, dtype=torch.bool)
    first_n[torch.randperm(n, generator=torch.Generator().manual_seed(seed))[: n // 2]] = True
    return first_n


def exchangeable(n: int, seed: int, d: int = D, g: int = G) -> TokenGradients:
    """Gradients that know nothing of the input: what a stationary expert on one noisy linear map has."""
    generator = torch.Generator().manual_seed(seed)
    centre_d = torch.randn(d, generator=generator)
    x_nd = centre_d + torch.randn(n, d, generator=generator)
    return TokenGradients(x_nd=x_nd, u_ng=0.1 * torch.randn(n, g, generator=generator))


def planted(n: int, seed: int, noise: float = 0.3) -> tuple[TokenGradients, Tensor]:
    """One linear map, the best for two clusters that want two: their gradients cancel. And bool, whose cluster."""
    generator = torch.Generator().manual_seed(seed)
    cluster_n = torch.arange(n) % 2 == 0
    centre_d = torch.randn(D, generator=generator)
    x_nd = torch.randn(n, D, generator=generator) + torch.where(cluster_n[:, None], 2 * centre_d, -2 * centre_d)
    maps_2gd = torch.randn(2, G, D, generator=generator)
    y_ng = torch.einsum("ngd,nd->ng", maps_2gd[cluster_n.long()], x_nd) + noise * torch.randn(n, G, generator=generator)
    best_dg = torch.linalg.lstsq(x_nd, y_ng).solution
    return TokenGradients(x_nd=x_nd, u_ng=(x_nd @ best_dg - y_ng) / n), cluster_n


def oracle(found: TokenGradients, first_n: Tensor, ridge: float) -> tuple[np.ndarray, float, float]:
    """Direction, T and R from the flattened outer products, with a singular value decomposition of the whole."""
    h_nr = (found.x_nd if found.h_nd is None else found.h_nd).double().numpy()
    grads = np.stack([np.outer(u, x).ravel() for u, x in zip(found.u_ng.double(), found.x_nd.double(), strict=True)])
    first = first_n.numpy()
    moment = np.zeros((h_nr.shape[1],) * 2)
    for row in h_nr[first]:
        moment += np.outer(row, row) / first.sum()
    moment += ridge * np.mean(np.diag(moment)) * np.eye(len(moment))
    values, vectors = np.linalg.eigh(moment)
    whiten = vectors @ np.diag(1 / np.sqrt(values)) @ vectors.T
    cross = sum(
        np.outer(h - h_nr[first].mean(0), grad - grads[first].mean(0))
        for h, grad in zip(h_nr[first], grads[first], strict=True)
    )
    direction = whiten @ np.linalg.svd(whiten @ cross)[0][:, 0]
    direction *= np.sign(direction[np.abs(direction).argmax()])
    tested, side = grads[~first], h_nr[~first] @ direction > 0
    one, two = tested[side], tested[~side]
    chance = one.var(0, ddof=1).sum() / len(one) + two.var(0, ddof=1).sum() / len(two)
    distance = ((one.mean(0) - two.mean(0)) ** 2).sum()
    share = len(one) * len(two) / len(tested) ** 2
    return direction, distance / chance, share * (distance - chance) / tested.var(0, ddof=1).sum()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("routed", [False, True])
def test_statistics_equal_those_of_the_outer_products(seed: int, routed: bool) -> None:
    for found in (exchangeable(61, seed), planted(60, seed)[0]):
        if routed:
            mixed_dr = torch.randn(D, D + 2, generator=torch.Generator().manual_seed(9))
            found = TokenGradients(x_nd=found.x_nd, u_ng=found.u_ng, h_nd=found.x_nd @ mixed_dr)
        first_n = halves(len(found.x_nd), seed)
        parted = conflict(found, first_n, 1e-3)
        direction, statistic, explained = oracle(found, first_n, 1e-3)
        np.testing.assert_allclose(parted.direction_r.numpy(), direction, atol=1e-6)
        assert parted.statistic == pytest.approx(statistic, rel=1e-6)
        assert parted.explained == pytest.approx(explained, rel=1e-6, abs=1e-9)
        assert sum(parted.sides) == len(found.x_nd) - first_n.sum()


@pytest.mark.parametrize(("d", "g"), [(2, 1), (6, 4), (16, 16)])
def test_without_sub_populations_false_alarms_are_rare(d: int, g: int) -> None:
    """T is about 1 on average whatever the shape; the fewer numbers a gradient has the wider it spreads: at worst as
    a chi-square of one degree of freedom, which exceeds 4 in 4.6 % of draws. R is 0 on average."""
    parted = [conflict(exchangeable(200, seed, d, g), halves(200, seed)) for seed in range(400)]
    statistics = np.array([item.statistic for item in parted])
    assert 0.85 < statistics.mean() < 1.15
    assert (statistics > 4).mean() <= (0.046 if g == 1 else 0.005)
    assert abs(np.mean([item.explained for item in parted])) < 0.003


def test_two_populations_that_cancel_are_found_and_told_apart() -> None:
    for seed in range(10):
        found, cluster_n = planted(400, seed)
        total_gd = found.u_ng.T @ found.x_nd
        assert total_gd.norm() < 1e-3 * torch.linalg.vector_norm(found.u_ng.norm(dim=1) * found.x_nd.norm(dim=1))
        parted = conflict(found, halves(400, seed))
        assert parted.statistic > 4 and parted.explained > 0.003
        agree = ((found.x_nd.double() @ parted.direction_r > 0) == cluster_n).double().mean()
        assert max(agree, 1 - agree) > 0.85


def test_neither_the_tokens_order_nor_the_gradients_scale_matters() -> None:
    found, _ = planted(120, 3)
    first_n, order_n = halves(120), torch.randperm(120, generator=torch.Generator().manual_seed(1))
    before = conflict(found, first_n)
    moved = TokenGradients(x_nd=found.x_nd[order_n], u_ng=found.u_ng[order_n])
    scaled = TokenGradients(x_nd=found.x_nd, u_ng=1e-6 * found.u_ng)
    for after in (conflict(moved, first_n[order_n]), conflict(scaled, first_n)):
        torch.testing.assert_close(after.direction_r, before.direction_r, rtol=1e-5, atol=1e-6)
        assert after.statistic == pytest.approx(before.statistic, rel=1e-5)
        assert after.explained == pytest.approx(before.explained, rel=1e-5)
        assert after.sides == before.sides


def test_gradients_that_are_zero_or_lie_on_one_side_are_no_conflict() -> None:
    x_nd = torch.randn(40, D).abs()
    still = conflict(TokenGradients(x_nd=x_nd, u_ng=torch.zeros(40, G)), halves(40))
    assert still.statistic == still.explained == 0.0
    alike_nd = torch.ones(40, 1)
    alike = conflict(TokenGradients(x_nd=alike_nd, u_ng=torch.randn(40, G)), halves(40))
    assert alike.sides == (20, 0) and alike.statistic == alike.explained == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_gradients_or_inputs_that_are_not_finite_are_no_conflict(bad: float) -> None:
    found = exchangeable(60, 0)
    for x_nd, u_ng in ((found.x_nd, found.u_ng * bad), (found.x_nd * bad, found.u_ng)):
        parted = conflict(TokenGradients(x_nd=x_nd, u_ng=u_ng), halves(60))
        assert (parted.statistic, parted.explained, parted.sides) == (0.0, 0.0, (0, 0))


def make(**options: float) -> Conflict:
    known = {"every": 5, "window": 10, "fewest": 4, "tokens": 400}
    return Conflict(ConflictConfig(**{**known, **options}), 4, seed=1)


def view(
    step: int, detector: Conflict, loss: float = 1.0, populations: dict[int, TokenGradients] | None = None
) -> View:
    """Slots 0, 1 and 3 live; 0 and 3 hold what is given for them, else one population; 1 has 7 tokens."""
    known = {0: exchangeable(300, step), 1: exchangeable(7, step), 3: exchangeable(300, step + 1)}
    known |= populations or {}
    sent_E = torch.tensor([len(known[e].x_nd) if e in known else 0 for e in range(4)])
    return View(
        layer=0,
        step=step,
        alive_E=torch.tensor([True, True, False, True]),
        norm_E=torch.ones(4, dtype=torch.float64),
        cos_E=torch.zeros(4, dtype=torch.float64),
        size=D * G,
        sent_E=sent_E,
        tokens=int(sent_E.sum()),
        unreached=0,
        loss=loss,
        gradients=(lambda expert, most, seed: known[expert]) if detector.wants_gradients(step) else None,
    )


def run(
    detector: Conflict, steps: range, loss: Callable[[int], float], populations: dict[int, TokenGradients] | None = None
) -> list[Finding]:
    return [detector.look(view(step, detector, loss(step), populations)) for step in steps]


def test_is_registered() -> None:
    assert DETECTORS["conflict"] is Conflict


def test_looks_every_few_steps_on_a_plateau_only() -> None:
    detector, two = make(), {3: planted(300, 0)[0]}
    falling = run(detector, range(40), lambda step: 2 * math.exp(-step / 50), two)
    assert not any(finding.fired_E.any() for finding in falling)
    assert not any(detector.wants_gradients(step) for step in range(40, 45))
    flat = run(detector, range(40, 80), lambda step: 0.9 + 0.02 * (step % 2), two)
    fired = [step for step, finding in zip(range(40, 80), flat, strict=True) if finding.fired_E.any()]
    assert fired and all(step % 5 == 0 for step in fired)
    assert all(finding.chosen == (3 if finding.fired_E.any() else None) for finding in flat)
    assert fired[0] >= 60 - 10, "the falling losses have left the newer window first"


def test_a_rising_loss_is_a_plateau_too() -> None:
    found = run(make(), range(41), lambda step: 1 + 0.01 * step, {3: planted(300, 0)[0]})
    assert [step for step, finding in enumerate(found) if finding.chosen == 3] == [20, 25, 30, 35, 40]


def test_the_plateau_is_exact() -> None:
    """The newer half's mean against (1 - fall) times the older half's."""
    for newer, expected in ((0.99 + 1e-9, True), (0.99 - 1e-9, False)):
        detector = make()
        run(detector, range(10), lambda step: 1.0)
        assert not detector.wants_gradients(10), "one window is not enough"
        run(detector, range(10, 20), lambda step, newer=newer: newer)
        assert detector.wants_gradients(20) is expected
        assert not detector.wants_gradients(21)


def test_its_signals_stand_beside_their_thresholds_and_the_direction_is_the_chosen_ones() -> None:
    detector, (two, cluster_n) = make(), planted(300, 0)
    last = run(detector, range(21), lambda step: 1.0, {0: two})[-1]
    assert last.fired_E.tolist() == [True, False, False, False] and last.chosen == 0
    assert {name: (at.at, at.fires) for name, at in last.thresholds.items()} == {
        "conflict": (4.0, "above"),
        "explained": (0.003, "above"),
        "loss_fall": (0.01, "below"),
    }
    assert last.signals["conflict"][0] > 4 > last.signals["conflict"][3]
    assert last.signals["conflict"][[1, 2]].isnan().all(), "too few tokens, and dead"
    assert last.signals["tokens"].nan_to_num().tolist() == [150, 0, 0, 150]
    assert last.signals["loss_fall"].tolist() == [0.0] * 4
    assert last.direction_d is not None and last.direction_d.dtype == torch.float32
    agree = ((two.x_nd @ last.direction_d > 0) == cluster_n).float().mean()
    assert max(agree, 1 - agree) > 0.9
    assert torch.equal(
        run(detector, range(21, 22), lambda step: 1.0)[0].signals["conflict"][0], last.signals["conflict"][0]
    )


def test_of_those_that_fire_the_one_with_most_to_explain_is_chosen() -> None:
    small, large = planted(300, 0)[0], planted(300, 1)[0]
    for scale, chosen in ((1e-2, 0), (1e2, 3)):
        scaled = TokenGradients(x_nd=large.x_nd, u_ng=scale * large.u_ng)
        last = run(make(), range(21), lambda step: 1.0, {0: small, 3: scaled})[-1]
        assert last.fired_E.tolist() == [True, False, False, True] and last.chosen == chosen


def test_an_expert_whose_copy_was_refused_gives_way_to_others() -> None:
    """Else the one with most to explain would be tried for ever, and the others never."""
    large, small = planted(300, 0)[0], planted(300, 1)[0]
    two = {0: large, 3: TokenGradients(x_nd=small.x_nd, u_ng=1e-2 * small.u_ng)}
    detector, chosen, step = make(), [], 0
    for kept in (False, False, True):
        found = run(detector, range(step, step + 21), lambda step: 1.0, two)[-1]
        step += 25
        assert found.chosen is not None and found.fired_E.tolist() == [True, False, False, True]
        chosen.append(found.chosen)
        detector.grown(found.chosen, 2)
        if not kept:
            detector.retired(2)
    assert chosen == [0, 3, 0]
    detector.grown(1, 0)
    assert detector.state()["refused"].tolist() == [0, 0, 0, 1], "another expert came into the slot"


def test_a_copy_can_be_parted_from_its_original_by_logits_of_a_size() -> None:
    found, cluster_n = planted(400, 2)
    parted = conflict(found, halves(400))
    rows_Er = 0.02 * torch.randn(3, D, generator=torch.Generator().manual_seed(1))
    rows_Er[2] = rows_Er[0]
    before_nE = found.x_nd @ rows_Er.T
    first_Egd = torch.zeros(3, G, D)
    split = Split(parent=0, child=2, rows_Er=rows_Er, direction_r=parted.direction_r.float(), first_Egd=first_Egd)
    CloneDirection(CloneDirectionConfig(push_logits=1.5)).part(split)
    moved_nE = found.x_nd @ rows_Er.T - before_nE
    torch.testing.assert_close(moved_nE[:, 0], -moved_nE[:, 2], atol=1e-4, rtol=1e-4)
    assert moved_nE[:, 2].square().mean().sqrt() == pytest.approx(1.5, rel=0.1)
    assert torch.equal(moved_nE[:, 1], torch.zeros(400))
    agree = ((moved_nE[:, 2] > 0) == cluster_n).float().mean()
    assert max(agree, 1 - agree) > 0.85


def test_after_a_change_of_experts_losses_are_counted_anew() -> None:
    for change in (lambda detector: detector.grown(0, 2), lambda detector: detector.retired(0)):
        detector = make()
        run(detector, range(21), lambda step: 1.0)
        change(detector)
        assert not any(detector.wants_gradients(step) for step in range(21, 31))
        finding = run(detector, range(21, 41), lambda step: 1.0)[-1]
        assert finding.signals["conflict"][0].isnan(), "nothing is known of a changed expert"
        assert finding.signals["conflict"][3].isfinite()
        assert detector.wants_gradients(45)


def test_a_restored_detector_goes_on_bit_for_bit() -> None:
    unbroken, two = make(), {3: planted(300, 0)[0]}
    run(unbroken, range(17), lambda step: 1 + 0.1 * math.sin(step))
    state = {name: value.clone() for name, value in unbroken.state().items()}
    resumed = make()
    assert {name: value.shape for name, value in resumed.state().items()} == {k: v.shape for k, v in state.items()}
    resumed.restore(state)
    for one, two_ in zip(
        *(run(part, range(17, 60), lambda step: 1 + 0.1 * math.sin(step), two) for part in (unbroken, resumed)),
        strict=True,
    ):
        assert one.chosen == two_.chosen
        for name, value in one.signals.items():
            assert torch.equal(value, two_.signals[name]) or torch.equal(value.isnan(), two_.signals[name].isnan())
    assert any(finding.chosen is not None for finding in run(resumed, range(60, 61), lambda step: 1.0, two))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"every": 0}, "every = 0"),
        ({"window": 0}, "window = 0"),
        ({"fewest": 1}, "fewest = 1"),
        ({"tokens": 15}, "tokens = 15"),
        ({"ridge": 0.0}, "ridge = 0.0"),
        ({"statistic": -1.0}, "statistic = -1.0"),
        ({"explained": math.nan}, "explained = nan"),
        ({"fall": math.inf}, "fall = inf"),
    ],
)
def test_bad_options_are_refused_in_a_sentence(options: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make(**options)
