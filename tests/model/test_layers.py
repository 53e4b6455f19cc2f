"""Rotary attention and the norm against naive implementations; shared experts; the MoE layer's record."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from moescope.model.experts import ExpertBank
from moescope.model.layers import Attention, MoELayer, RMSNorm, SwiGLU, rotary_angles, rotate
from router_cases import Case, context, randn

D, HEADS, BASE = 16, 2, 10000.0


def naive_attention(attention: Attention, x_Sd: Tensor, length: int, position_S: Tensor) -> Tensor:
    """One query at a time; rotary as multiplication by complex numbers."""
    width = D // HEADS
    q_Sd, k_Sd, v_Sd = (x_Sd.double() @ attention.qkv.weight.double().T).split(D, dim=1)
    out_Sd = torch.zeros_like(q_Sd)
    for head in range(HEADS):
        part = slice(head * width, (head + 1) * width)

        def turned(x_Sd: Tensor, part: slice = part) -> Tensor:
            pairs = torch.complex(x_Sd[:, part][:, : width // 2], x_Sd[:, part][:, width // 2 :])
            for i in range(width // 2):
                pairs[:, i] *= torch.exp(1j * position_S.double() * BASE ** (-2 * i / width))
            return pairs

        q, k = turned(q_Sd), turned(k_Sd)
        for s in range(length):
            seen = range(s + 1) if attention.causal else range(length)
            scores = torch.stack([(q[s] * k[j].conj()).sum().real / math.sqrt(width) for j in seen])
            for weight, j in zip(scores.softmax(0), seen, strict=True):
                out_Sd[s, part] += weight * v_Sd[j, part]
    return (out_Sd @ attention.out.weight.double().T).float()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("start", [0, 1000])
def test_rotary_attention_equals_the_naive_one(causal: bool, start: int) -> None:
    torch.manual_seed(0)
    attention = Attention(D, HEADS, causal)
    x_BSd, lengths = randn(3, 9, D), torch.tensor([9, 5, 1])
    valid_BS = torch.arange(9) < lengths[:, None]
    position_BS = torch.arange(start, start + 9)[None]
    y_BSd = attention(x_BSd, *rotary_angles(position_BS, D // HEADS, BASE), valid_BS)
    assert y_BSd.isfinite().all()
    for b, length in enumerate(lengths.tolist()):
        expected = naive_attention(attention, x_BSd[b], length, position_BS[0])
        torch.testing.assert_close(y_BSd[b, :length], expected[:length], atol=2e-5, rtol=1e-4)


def test_rotation_keeps_lengths_and_makes_products_depend_on_distance_only() -> None:
    q, k = randn(1, 1, 1, 8), randn(1, 1, 1, 8, seed=1)

    def product(i: int, j: int) -> float:
        turned = (rotate(x, *rotary_angles(torch.tensor([[at]]), 8, BASE)) for x, at in ((q, i), (k, j)))
        one, two = turned
        assert one.norm().item() == pytest.approx(q.norm().item(), rel=1e-5)
        return (one * two).sum().item()

    assert product(7, 3) == pytest.approx(product(104, 100), abs=1e-4)
    assert product(7, 3) != pytest.approx(product(3, 7), abs=1e-3)


def test_a_sequence_of_padding_only_stays_finite_in_both_directions() -> None:
    attention = Attention(D, HEADS, False)
    x_BSd = randn(2, 4, D).requires_grad_()
    y_BSd = attention(x_BSd, *rotary_angles(torch.arange(4)[None], 8, BASE), torch.zeros(2, 4, dtype=torch.bool))
    y_BSd.sum().backward()
    assert y_BSd.isfinite().all() and x_BSd.grad is not None and x_BSd.grad.isfinite().all()


def test_rms_norm_equals_torchs_and_is_float32_inside() -> None:
    norm, x = RMSNorm(D), randn(5, D) * 30
    with torch.no_grad():
        norm.weight.copy_(randn(D, seed=3))
    torch.testing.assert_close(norm(x), torch.nn.functional.rms_norm(x, (D,), norm.weight, 1e-6))
    low = norm(x.bfloat16())
    assert low.dtype == torch.bfloat16
    assert torch.equal(low, norm(x.bfloat16().float()).bfloat16())


def test_shared_experts_are_the_sum_of_their_parts() -> None:
    """A shared SwiGLU of width n f is n experts of width f, each used by every token."""
    shared, f = SwiGLU(D, 12), 4
    x_Td = randn(6, D)
    gate_up, down = shared.gate_up.weight, shared.down.weight
    total = torch.zeros(6, D)
    for n in range(3):
        rows = slice(n * f, (n + 1) * f)
        gate, up = x_Td @ gate_up[:12][rows].T, x_Td @ gate_up[12:][rows].T
        total += (torch.nn.functional.silu(gate) * up) @ down[:, rows].T
    torch.testing.assert_close(shared(x_Td), total)


def test_the_moe_layer_adds_shared_experts_and_records_what_it_saw() -> None:
    bank, shared = ExpertBank(4, D, 8), SwiGLU(D, 8)
    with torch.no_grad():
        for weight in bank.parameters():
            weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    router = Case("topk_softmax").build(D, 4)
    x_Td, ctx = randn(10, D), context(1, 10, 4)
    plain, _ = MoELayer(router, bank, None, 4)(x_Td, ctx)
    both, record = MoELayer(router, bank, shared, 4)(x_Td, ctx)
    torch.testing.assert_close(both, plain + shared(x_Td))
    assert record.input_Td is x_Td and record.layer == 0 and record.alive_E.all()
    assert torch.equal(record.routing.gate_TK, router(x_Td, ctx).gate_TK)
