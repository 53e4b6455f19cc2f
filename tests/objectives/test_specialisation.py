"""Orthogonality and variance (2505.22323): ends of the scale, identities, and what the first release computed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from objective_cases import Case, Layer, layer, randn

COSINE, PAIRWISE, SPAN, FIRST = (
    Case("orthogonality", {"mode": mode}) for mode in ("cosine", "pairwise", "span", "as_released_first")
)
every_mode = pytest.mark.parametrize("case", [COSINE, PAIRWISE, SPAN, FIRST], ids=str)


def value(case: Case, made: Layer) -> float:
    return float(case.build()(made.record()))


def with_outputs(output_TKd: Tensor) -> Layer:
    made = layer(len(output_TKd), 8, output_TKd.shape[1], full=True)
    return made.change(output_TKd=output_TKd.double(), activation_TKf=output_TKd.double())


def frames(tokens: int, k: int, width: int) -> Tensor:
    """k orthonormal outputs per token."""
    return torch.linalg.qr(randn(tokens, width, k))[0].transpose(1, 2)


@pytest.mark.parametrize("case", [COSINE, PAIRWISE, SPAN, Case("spread_sp")], ids=str)
@pytest.mark.parametrize("k", [2, 3, 5])
def test_orthogonal_outputs_give_0(case: Case, k: int) -> None:
    lengths_TK1 = randn(20, k, 1, seed=1).exp()
    assert value(case, with_outputs(frames(20, k, 9) * lengths_TK1)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("case", [COSINE, Case("spread_sp")], ids=str)
@pytest.mark.parametrize("k", [2, 3, 5])
def test_parallel_outputs_give_1_whatever_their_lengths_and_signs(case: Case, k: int) -> None:
    lengths_TK1 = randn(20, k, 1, seed=1)
    assert value(case, with_outputs(randn(20, 1, 9) * lengths_TK1)) == pytest.approx(1)


def test_identical_outputs_give_their_squared_length_to_the_projections() -> None:
    y_T1d = randn(20, 1, 9)
    length = float(y_T1d.square().sum(-1).mean())
    made = with_outputs(y_T1d.expand(20, 4, 9))
    assert value(SPAN, made) == pytest.approx(length), "three equal others span one direction"
    assert value(PAIRWISE, made) == pytest.approx(3 * length), "each other one is counted for itself"


def test_with_two_experts_pairwise_equals_span() -> None:
    made = with_outputs(randn(50, 2, 9) + 0.5)
    assert value(PAIRWISE, made) == pytest.approx(value(SPAN, made), rel=1e-7) != 0
    more = with_outputs(randn(50, 3, 9) + 0.5)
    assert value(PAIRWISE, more) != pytest.approx(value(SPAN, more), rel=0.05)


@every_mode
def test_one_expert_per_token_gives_exactly_0(case: Case) -> None:
    assert value(case, with_outputs(randn(30, 1, 9))) == 0
    sent_TK = torch.nn.functional.one_hot(torch.arange(30) % 3, 3).bool()
    assert value(case, with_outputs(randn(30, 3, 9)).change(wanted_TK=sent_TK)) == 0


@every_mode
def test_all_but_cosine_fall_when_outputs_merely_shrink(case: Case) -> None:
    made = with_outputs(randn(30, 3, 9))
    shrunk = made.change(output_TKd=0.1 * made.output_TKd)
    expected = value(case, made) * (1 if case is COSINE else 0.01)
    assert value(case, shrunk) == pytest.approx(expected, rel=1e-6)


def test_outputs_that_fill_the_space_are_spanned_by_the_others_whole() -> None:
    made = with_outputs(randn(10, 6, 4))
    assert value(SPAN, made) == pytest.approx(float(made.output_TKd.square().sum(-1).mean()))


def test_the_gradient_of_span_is_exact_although_the_combination_passes_none() -> None:
    """Against autograd through numpy's rule written out: pinv of the others, full rank, three outputs."""
    y_TKd = randn(6, 3, 5).requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for y_Kd in y_TKd:
        for j in range(3):
            others_dJ = y_Kd[[i for i in range(3) if i != j]].T
            total = total + (others_dJ @ (torch.linalg.pinv(others_dJ) @ y_Kd[j])).square().sum() / (3 * 6)
    (expected,) = torch.autograd.grad(total, y_TKd)
    made = with_outputs(y_TKd.detach()).learning()
    SPAN.build()(made.record()).backward()
    torch.testing.assert_close(made.output_TKd.grad, expected, rtol=1e-8, atol=1e-10)


def test_the_first_release_compares_tokens_of_one_expert_and_so_misses_what_it_is_for() -> None:
    """Each expert has one output of its own, orthogonal to the others': no overlap, yet the mistake reports all."""
    made = layer(40, 8, 2, full=True, width=8)
    constant = made.change(output_TKd=torch.eye(8, dtype=torch.float64)[made.expert_TK])
    assert value(SPAN, constant) == pytest.approx(0, abs=1e-12)
    assert value(FIRST, constant) > 0.9
    same_for_a_token = made.change(output_TKd=frames(1, 8, 8)[0][torch.arange(40) % 8][:, None].expand(40, 2, 8))
    assert value(COSINE, same_for_a_token) == pytest.approx(1)
    assert value(FIRST, same_for_a_token) < 0.5


@pytest.mark.parametrize("after_topk", [False, True])
def test_the_papers_variance_holds_a_balance_term_that_the_released_one_does_not(after_topk: bool) -> None:
    """Σ(s - s̄_e)² = Σ(s - 1/E)² - T Σ(s̄_e - 1/E)², for scores that sum to 1."""
    made = layer(40, 6, 3, full=True)
    routing = made.record().routing
    s_TE = routing.probs_TE
    if after_topk:
        s_TE = torch.zeros_like(s_TE).scatter(1, routing.expert_TK, routing.gate_TK)
    sharpness = float((s_TE - 1 / 6).square().sum())
    imbalance = float(40 * (s_TE.mean(0) - 1 / 6).square().sum())
    options = {"after_topk": after_topk}
    paper, released = (value(Case("variance", {**options, "form": form}), made) for form in ("paper", "released"))
    assert paper == pytest.approx(-(sharpness - imbalance) / (40 * 6))
    assert released == pytest.approx(-sharpness / (40 * 5))


def test_collapse_is_the_worst_of_the_papers_variance_and_the_best_of_the_released_one() -> None:
    made = layer(40, 4, 1, full=True)
    sure_TE = torch.full((40, 4), -1e3, dtype=torch.float64)
    collapsed = made.change(logits_TE=sure_TE.index_fill(1, torch.tensor(2), 0.0))
    balanced = made.change(logits_TE=sure_TE.scatter(1, torch.arange(40)[:, None] % 4, 0.0))
    flat = made.change(logits_TE=torch.zeros(40, 4, dtype=torch.float64))
    paper, released = Case("variance"), Case("variance", {"form": "released"})
    assert value(paper, collapsed) == value(paper, flat) == 0
    assert value(paper, balanced) == pytest.approx(-3 / 16), "-(E - 1) / E²"
    assert value(released, collapsed) == value(released, balanced) == pytest.approx(-1 / 4), "-1 / E"
    assert value(released, flat) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_perfect_copy_gets_no_gradient_from_redundancy(dtype: torch.dtype) -> None:
    """None at all: AdamW makes a whole step of what rounding leaves, where the copy's moments are zero."""
    made = layer()
    copied = made.change(rows_Er=made.rows_Er[[0, 0, 0, 3, 4, 5]].to(dtype)).learning()
    loss = Case("redundancy").build()(copied.record())
    loss.backward()
    assert loss.item() == pytest.approx(1) and copied.rows_Er.grad is not None
    assert not copied.rows_Er.grad.any()
