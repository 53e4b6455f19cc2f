"""Experts that are one linear map, with or without SiLU, in one stacked tensor; and the ways of computing them.

Shapes: T tokens, K slots, N = T * K assignments, E expert slots, U of them used, d model width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moescope.model.experts import Bank
from moescope.model.ways import Plan

Shape = Callable[[Tensor], Tensor]
"""What an expert does to W x, element by element."""

LinearWay = Callable[[Tensor, Tensor, Shape, Tensor, Tensor, Tensor], Tensor]
"""(x_Td, weight_Eod, shape, expert_TK, gate_TK, sent_TK) -> y_Td; all of one dtype but the gates."""


def slotwise(x_Td: Tensor, weight_Eod: Tensor, shape: Shape, expert_TK: Tensor, sent_TK: Tensor) -> Tensor:
    """Unweighted outputs [T, K, d], one matmul per expert on its slice of the sorted assignments; zero where not sent.

    Weights are unbound once: `w[e]` inside the loop would zero-fill a whole gradient per expert.
    """
    num_tokens, k = expert_TK.shape
    plan = Plan.of(expert_TK, sent_TK, weight_Eod.shape[0])
    slices = torch.split(x_Td.index_select(0, plan.token_S), plan.counts)
    parts = list(zip(slices, weight_Eod.unbind(), strict=True))
    used = [part for part in parts if part[0].shape[0]] or parts[:1]
    done_Sd = shape(torch.cat([F.linear(*part) for part in used]))
    y_Nd = done_Sd.new_zeros(num_tokens * k, done_Sd.shape[1]).index_copy(0, plan.order_S, done_Sd)
    return y_Nd.view(num_tokens, k, weight_Eod.shape[1])


def slices(
    x_Td: Tensor, weight_Eod: Tensor, shape: Shape, expert_TK: Tensor, gate_TK: Tensor, sent_TK: Tensor
) -> Tensor:
    """What was sent and nothing else: a matmul per expert."""
    y_TKd = slotwise(x_Td, weight_Eod, shape, expert_TK, sent_TK)
    return (y_TKd * gate_TK.to(y_TKd.dtype)[..., None]).sum(dim=1)


def together(
    x_Td: Tensor, weight_Eod: Tensor, shape: Shape, expert_TK: Tensor, gate_TK: Tensor, sent_TK: Tensor
) -> Tensor:
    """Every used expert on every token in one matmul, weighted by a matrix of gates: few calls, needless products."""
    used_U = torch.unique(expert_TK[sent_TK]) if bool(sent_TK.any()) else expert_TK.new_zeros(1)
    place_E = torch.zeros(weight_Eod.shape[0], dtype=torch.int64, device=x_Td.device)
    place_E[used_U] = torch.arange(len(used_U), device=x_Td.device)
    sent_gate_TK = gate_TK.where(sent_TK, 0.0).to(x_Td.dtype)
    gate_TU = sent_gate_TK.new_zeros(len(x_Td), len(used_U)).scatter_add(1, place_E[expert_TK], sent_gate_TK)
    mapped_Tx = F.linear(x_Td, weight_Eod.index_select(0, used_U).flatten(0, 1))
    y_TUd = shape(mapped_Tx).view(len(x_Td), len(used_U), weight_Eod.shape[1])
    return torch.bmm(gate_TU[:, None], y_TUd)[:, 0]


def grouped(
    x_Td: Tensor, weight_Eod: Tensor, shape: Shape, expert_TK: Tensor, gate_TK: Tensor, sent_TK: Tensor
) -> Tensor:
    """`torch.nn.functional.grouped_mm` over all slots, never waiting for the device; unsent ones as in `ways`."""
    num_tokens, k = expert_TK.shape
    num_experts = weight_Eod.shape[0]
    key_N, order_N = expert_TK.where(sent_TK, num_experts).flatten().sort(stable=True)
    ends_E = torch.searchsorted(key_N, torch.arange(num_experts, device=x_Td.device), right=True).to(torch.int32)
    sent_N1 = (key_N < num_experts)[:, None]
    x_Nd = x_Td.index_select(0, order_N // k).where(sent_N1, 0.0)
    mapped_Nd = F.grouped_mm(x_Nd, weight_Eod.transpose(1, 2), offs=ends_E).where(sent_N1, 0.0)
    back_N = torch.empty_like(order_N).scatter_(0, order_N, torch.arange(len(order_N), device=x_Td.device))
    y_TKd = shape(mapped_Nd).index_select(0, back_N).view(num_tokens, k, weight_Eod.shape[1])
    return (y_TKd * gate_TK.to(y_TKd.dtype)[..., None]).sum(dim=1)


LINEAR_WAYS: Final[dict[str, LinearWay]] = {"slices": slices, "together": together, "grouped": grouped}
"""Every way gives the same outputs and gradients (tests hold each to a naive double loop)."""

SHAPES: Final[dict[str, Shape]] = {"silu": F.silu, "linear": lambda mapped: mapped}
"""What `model.expert` may be beside SwiGLU."""

SMALL: Final = 2**23
"""Multiply-adds of all experts on all tokens below which needless ones cost less than calls (measured, two cores)."""


def pick_linear(num_tokens: int, weight_Eod: Tensor) -> str:
    """The fastest way, by name, for this shape, dtype and device."""
    aligned = (weight_Eod.shape[2] * weight_Eod.element_size()) % 16 == 0
    if weight_Eod.is_cuda and weight_Eod.dtype == torch.bfloat16 and aligned:
        return "grouped"
    return "together" if num_tokens * weight_Eod.numel() < SMALL else "slices"


class LinearBank(Bank):
    """E experts y = shape(W x), `shape` SiLU (the experts of MASS, 2512.19765) or none: `weight` [E, d, d]."""

    per_expert = ("weight",)
    first = "weight"

    def __init__(self, num_experts: int, d_model: int, shape: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, d_model, d_model))
        self.shape = SHAPES[shape]

    def forward(self, x_Td: Tensor, expert_TK: Tensor, gate_TK: Tensor, sent_TK: Tensor) -> Tensor:
        x_Td, weight = self._cast(x_Td)
        with torch.autocast(x_Td.device.type, enabled=False):
            way = self.way or pick_linear(len(x_Td), weight)
            return LINEAR_WAYS[way](x_Td, weight, self.shape, expert_TK, gate_TK, sent_TK)

    def per_slot(self, x_Td: Tensor, expert_TK: Tensor, sent_TK: Tensor) -> tuple[Tensor, Tensor]:
        """As for any bank; there is nothing between input and output, so the activations are the outputs."""
        x_Td, weight = self._cast(x_Td)
        with torch.autocast(x_Td.device.type, enabled=False):
            y_TKd = slotwise(x_Td, weight, self.shape, expert_TK, sent_TK)
        return y_TKd, y_TKd

    def finish(self, pre_ng: Tensor, expert: int) -> tuple[Tensor, Tensor]:
        y_nd = self.shape(pre_ng)
        return y_nd, y_nd

    def _cast(self, x_Td: Tensor) -> tuple[Tensor, Tensor]:
        """The input and the weights, in autocast's dtype where it is on."""
        device = x_Td.device.type
        if not torch.is_autocast_enabled(device):
            return x_Td, self.weight
        dtype = torch.get_autocast_dtype(device)
        return x_Td.to(dtype), self.weight.to(dtype)
