"""Every way of computing the expert bank equals a naive double loop: outputs and all gradients, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from moescope.model.experts import WAYS, ExpertBank, pick
from moescope.model.ways import Plan

CASES = {
    # name: tokens, experts, slots, width, expert width, share of slots not sent
    "even": (100, 4, 2, 8, 16, 0.0),
    "one token": (1, 5, 5, 8, 4, 0.0),
    "one expert": (7, 1, 1, 4, 4, 0.0),
    "every expert a slot, most not sent": (33, 16, 16, 8, 8, 0.8),
    "an expert without tokens": (3, 16, 2, 8, 4, 0.3),
    "nothing sent": (5, 3, 2, 8, 4, 1.1),
}


def naive(x: Tensor, gate_up: Tensor, down: Tensor, expert: Tensor, gate: Tensor, sent: Tensor) -> Tensor:
    rows = []
    for t in range(x.shape[0]):
        row = x[t] * 0.0
        for slot in range(expert.shape[1]):
            if sent[t, slot]:
                e = int(expert[t, slot])
                a, b = (gate_up[e] @ x[t]).chunk(2)
                row = row + gate[t, slot] * (down[e] @ (F.silu(a) * b))
        rows.append(row)
    return torch.stack(rows)


def inputs(case: str, dtype: torch.dtype, collapse: bool) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    tokens, experts, slots, d, f, unsent = CASES[case]
    torch.manual_seed(7)
    make = [
        torch.randn(tokens, d),
        torch.randn(experts, 2 * f, d),
        torch.randn(experts, d, f),
        torch.rand(tokens, slots),
    ]
    expert = torch.stack([torch.randperm(experts)[:slots] for _ in range(tokens)])
    if collapse:
        expert[:, 0] = 0
        expert[:, 1:] = torch.arange(1, slots) if slots > 1 else expert[:, 1:]
    sent = torch.rand(tokens, slots) >= unsent
    return [m.to(dtype).requires_grad_() for m in make], expert, sent, torch.randn(tokens, d).to(dtype)


@pytest.mark.parametrize("collapse", [False, True], ids=["spread", "collapsed"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("way", WAYS)
def test_outputs_and_every_gradient_equal_the_double_loop(way: str, case: str, collapse: bool) -> None:
    dtype = torch.float32 if way == "grouped_mm" else torch.float64
    if way == "grouped_mm" and any(size % 4 for size in CASES[case][3:5]):
        pytest.fail("grouped_mm needs rows aligned to 16 bytes: mend the case")
    (x, gate_up, down, gate), expert, sent, dy = inputs(case, dtype, collapse)
    results = []
    for compute in (naive, WAYS[way]):
        leaves = [p.detach().clone().requires_grad_() for p in (x, gate_up, down, gate)]
        y = compute(leaves[0], leaves[1], leaves[2], expert, leaves[3] * sent, sent)
        (y * dy).sum().backward()
        results.append([y.detach(), *(torch.zeros_like(p) if p.grad is None else p.grad for p in leaves)])
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-9}
    for ours, oracle in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, oracle, **close)


@pytest.mark.parametrize("way", WAYS)
def test_bfloat16_stays_within_its_rounding_of_float32(way: str) -> None:
    (x, gate_up, down, gate), expert, sent, _ = inputs("even", torch.float32, collapse=False)
    exact = WAYS["sorted_slices"](x, gate_up, down, expert, gate, sent)
    rough = WAYS[way](x.bfloat16(), gate_up.bfloat16(), down.bfloat16(), expert, gate, sent)
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).norm() / exact.norm() < 0.02


@pytest.mark.parametrize("way", WAYS)
def test_the_same_input_gives_the_same_bits(way: str) -> None:
    (x, gate_up, down, gate), expert, sent, _ = inputs("even", torch.float32, collapse=False)
    first, second = (WAYS[way](x, gate_up, down, expert, gate, sent) for _ in range(2))
    assert torch.equal(first, second)


def test_without_gradients_nothing_is_kept() -> None:
    (x, gate_up, down, gate), expert, sent, _ = inputs("even", torch.float32, collapse=False)
    with torch.no_grad():
        y = WAYS["fused_slices"](x, gate_up, down, expert, gate, sent)
    assert y.grad_fn is None


def test_a_plan_counts_only_what_is_sent_and_sorts_by_expert() -> None:
    expert, sent = torch.tensor([[2, 0], [0, 1]]), torch.tensor([[True, True], [True, False]])
    plan = Plan.of(expert, sent, 3)
    assert plan.counts == [2, 0, 1]
    assert plan.token_S.tolist() == [0, 1, 0]


def test_small_slices_are_padded_and_large_ones_fused() -> None:
    assert pick(512, 2, torch.empty(8, 256, 64)) == "padded_bmm"
    assert pick(4096, 2, torch.empty(8, 1024, 256)) == "fused_slices"
    assert set(WAYS) >= {"padded_bmm", "fused_slices", "grouped_mm"}


def test_a_named_way_is_the_one_that_computes() -> None:
    bank = ExpertBank(2, 4, 4)
    bank.way = "no such way"
    with pytest.raises(KeyError):
        bank(
            torch.zeros(1, 4), torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool)
        )
