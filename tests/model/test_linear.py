"""Experts that are one linear map: every way of computing them against a naive double loop; in a model, and saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from moescope.adapters import open_checkpoint
from moescope.adapters.ours import card_of
from moescope.model import Batch, ModelConfig, Transformer, active_params, load_checkpoint, num_params, save_checkpoint
from moescope.model.linear import LINEAR_WAYS, SHAPES, LinearBank, pick_linear
from moescope.routers.base import Routing
from router_cases import Case, context, randn

D = 16  # rows of 16 bytes in any dtype, as grouped_mm wants them
KINDS = [Case(name) for name in ("topk_softmax", "switch", "mass", "expert_choice", "frozen")]


def naive(bank: LinearBank, shape: str, x_Td: Tensor, routing: Routing) -> Tensor:
    """One token and one slot at a time, straight from the definition."""
    rows = []
    for t in range(x_Td.shape[0]):
        y_d = torch.zeros_like(x_Td[t])
        for slot in range(routing.expert_TK.shape[1]):
            if routing.sent_TK[t, slot]:
                mapped_d = bank.weight[int(routing.expert_TK[t, slot])] @ x_Td[t]
                if shape == "silu":
                    mapped_d = mapped_d / (1 + torch.exp(-mapped_d))
                y_d = y_d + routing.gate_TK[t, slot] * mapped_d
        rows.append(y_d)
    return torch.stack(rows)


def make_bank(num_experts: int, shape: str, way: str | None) -> LinearBank:
    bank = LinearBank(num_experts, D, shape)
    with torch.no_grad():
        bank.weight.normal_(0, 0.5, generator=torch.Generator().manual_seed(5))
    bank.way = way
    return bank


def gradients(
    bank: LinearBank, shape: str, case: Case, num_tokens: int, num_experts: int, *, oracle: bool
) -> list[Tensor]:
    """Output, and gradients of tokens, router and weights, through the routing."""
    router = case.fit(num_experts).build(D, num_experts)
    x_Td = randn(num_tokens, D, seed=1).to(bank.weight.dtype).requires_grad_()
    valid_T = torch.arange(num_tokens) % 5 != 4
    alive_E = torch.arange(num_experts) != 2
    routing = router(x_Td, context(1, num_tokens, num_experts, valid_T=valid_T, alive_E=alive_E))
    slots = routing.expert_TK, routing.gate_TK, routing.sent_TK
    y_Td = naive(bank, shape, x_Td, routing) if oracle else bank(x_Td, *slots)
    (y_Td * randn(num_tokens, D, seed=2)).sum().backward()
    found = [torch.zeros_like(p) if p.grad is None else p.grad.float() for p in (x_Td, router.weight, bank.weight)]
    return [y_Td.detach().float(), *found]


@pytest.mark.parametrize("case", KINDS, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("way", [*LINEAR_WAYS, None])
@pytest.mark.parametrize(("num_tokens", "num_experts"), [(1, 1), (7, 5), (67, 3)])
def test_outputs_and_all_gradients_equal_the_double_loop(
    case: Case, shape: str, way: str | None, num_tokens: int, num_experts: int
) -> None:
    ours = gradients(make_bank(num_experts, shape, way), shape, case, num_tokens, num_experts, oracle=False)
    wide = make_bank(num_experts, shape, None).double()
    expected = gradients(wide, shape, case, num_tokens, num_experts, oracle=True)
    for name, one, two in zip(("y", "x", "router", "weight"), ours, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}")
    if num_experts > 2:
        assert (ours[3][2] == 0).all(), "a dead slot gets no gradient"


@pytest.mark.parametrize("way", LINEAR_WAYS)
def test_low_precision_stays_near_float64(way: str) -> None:
    wide, case = make_bank(5, "silu", "slices").double(), Case("topk_softmax")
    x_Td = randn(50, D, seed=1).bfloat16()
    routing = case.build(D, 5)(x_Td, context(1, 50, 5))
    slots = routing.expert_TK, routing.gate_TK.detach(), routing.sent_TK
    with torch.no_grad():
        wide.weight.copy_(wide.weight.bfloat16())
    expected = wide(x_Td.double(), *slots).float()
    single = make_bank(5, "silu", way)
    single.load_state_dict(wide.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        y_Td = single(x_Td.float(), *slots)
    assert y_Td.dtype == torch.bfloat16, "computed in autocast's dtype, not beside it"
    torch.testing.assert_close(y_Td.float(), expected, rtol=0.03, atol=0.03)
    y_Td.sum().backward()
    assert single.weight.grad is not None and single.weight.grad.dtype == torch.float32
    low = single.to(torch.bfloat16)(x_Td, *slots)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), expected, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("way", LINEAR_WAYS)
@pytest.mark.parametrize("num_tokens", [0, 9])
def test_nothing_sent_gives_zeros_and_zero_gradients(way: str, num_tokens: int) -> None:
    bank = make_bank(4, "silu", way)
    x_Td = randn(num_tokens, D).requires_grad_()
    none_TK = torch.zeros(num_tokens, 2, dtype=torch.bool)
    y_Td = bank(x_Td, none_TK.long(), none_TK.float(), none_TK)
    assert y_Td.shape == (num_tokens, D) and (y_Td == 0).all()
    y_Td.sum().backward()
    for tensor in (x_Td, bank.weight):
        assert tensor.grad is not None and (tensor.grad == 0).all()


@pytest.mark.parametrize("way", LINEAR_WAYS)
def test_a_way_is_deterministic(way: str) -> None:
    bank, x_Td = make_bank(8, "linear", way), randn(200, D)
    routing = Case("topk_softmax", {"k": 3}).build(D, 8)(x_Td, context(1, 200, 8))
    one, two = (bank(x_Td, routing.expert_TK, routing.gate_TK, routing.sent_TK) for _ in range(2))
    assert torch.equal(one, two)


@pytest.mark.parametrize("shape", SHAPES)
def test_slots_alone_and_forced_outputs_are_the_experts(shape: str) -> None:
    bank, x_Td = make_bank(3, shape, None), randn(6, D)
    mapped_TEd = torch.einsum("eod,td->teo", bank.weight, x_Td)
    expected_TEd = mapped_TEd * mapped_TEd.sigmoid() if shape == "silu" else mapped_TEd
    torch.testing.assert_close(bank.every(x_Td), expected_TEd, rtol=1e-4, atol=1e-5)
    expert_TK = torch.tensor([[0, 2]]).expand(6, -1)
    sent_TK = torch.arange(12).view(6, 2) % 3 != 0
    output_TKd, activation_TKf = bank.per_slot(x_Td, expert_TK, sent_TK)
    due = expected_TEd[:, [0, 2]] * sent_TK[..., None]
    torch.testing.assert_close(output_TKd, due, rtol=1e-4, atol=1e-5)
    assert torch.equal(activation_TKf, output_TKd)


def test_few_products_are_done_together_and_many_apart() -> None:
    assert pick_linear(128, torch.empty(8, 32, 32)) == "together"
    assert pick_linear(4096, torch.empty(8, 256, 256)) == "slices"


CONFIG: dict[str, Any] = {
    "vocab_size": 30, "d_model": 16, "num_layers": 2, "num_heads": 2, "num_experts": 3, "max_experts": 5, "max_seq": 12,
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_a_model_of_them_is_counted_saved_read_and_verified(shape: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    made = Transformer(ModelConfig(**CONFIG, expert=shape, router_config={"k": 2}), seed=1).eval()
    banks = [layer.bank for layer in made.moe.values()]
    assert all(sum(p.numel() for p in bank.parameters()) == 5 * 16 * 16 for bank in banks)
    assert num_params(made) - active_params(made) == 2 * (5 - 2) * 16 * 16
    save_checkpoint(tmp_path / "saved", made, None, {})
    back, _, _ = load_checkpoint(tmp_path / "saved")
    assert back.config == made.config
    for name, tensor in made.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name
    opened = open_checkpoint(tmp_path / "saved")
    assert opened.card.params == num_params(made) and [meta.num_experts for meta in opened.layers] == [3, 3]
    inputs = torch.arange(24).view(2, 12) % 30
    records = opened.records(Batch(inputs, torch.ones(2, 12, dtype=torch.bool)))
    assert len(records) == 2 and all(check["passed"] for check in opened.self_check())
    assert card_of(made, "x").params == opened.card.params


def test_weights_are_drawn_for_the_residual_stream() -> None:
    made = Transformer(ModelConfig(**{**CONFIG, "d_model": 64}, expert="linear"), seed=0)
    for layer in made.moe.values():
        assert layer.bank.weight.std().item() == pytest.approx(64**-0.5 / 2, rel=0.05)
