"""The expert bank: SwiGLU experts in stacked tensors, and the ways of computing them.

Shapes: T tokens, K slots, N = T * K assignments, E expert slots, d model width, f expert width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Way = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(x_Td, gate_up_Egd, down_Edf, expert_TK, gate_TK, sent_TK) -> y_Td, with g = 2f; all of one dtype but the gates."""


def swiglu(x_Nd: Tensor, gate_up_gd: Tensor, down_df: Tensor) -> Tensor:
    """down(silu(gate x) * up x); rows [0, f) of `gate_up_gd` are the gate, rows [f, 2f) are up."""
    gate_Nf, up_Nf = F.linear(x_Nd, gate_up_gd).chunk(2, dim=-1)
    return F.linear(F.silu(gate_Nf) * up_Nf, down_df)


def sorted_slices(
    x_Td: Tensor, gate_up_Egd: Tensor, down_Edf: Tensor, expert_TK: Tensor, gate_TK: Tensor, sent_TK: Tensor
) -> Tensor:
    """Sort assignments by expert, then one matmul per contiguous slice; weights are unbound once.

    (`w[e]` inside the loop would zero-fill a whole gradient per expert in the backward pass.)
    """
    num_tokens, k = expert_TK.shape
    num_experts = gate_up_Egd.shape[0]
    key_N = expert_TK.where(sent_TK, num_experts).flatten()
    order_N = key_N.argsort(stable=True)
    counts = torch.bincount(key_N, minlength=num_experts + 1)[:num_experts].tolist()
    order_M = order_N[: sum(counts)]
    slices = x_Td.index_select(0, order_M // k).split(counts)  # type: ignore[no-untyped-call]
    done = [
        swiglu(part, gate_up, down)
        for part, gate_up, down in zip(slices, gate_up_Egd.unbind(), down_Edf.unbind(), strict=True)
        if part.shape[0]
    ]
    if not done:
        return x_Td * 0.0
    y_Nd = x_Td.new_zeros(num_tokens * k, x_Td.shape[1]).index_copy(0, order_M, torch.cat(done))
    return (y_Nd.view(num_tokens, k, -1) * gate_TK.to(y_Nd.dtype)[..., None]).sum(dim=1)


WAYS: Final[dict[str, Way]] = {"sorted_slices": sorted_slices}
"""Every way gives the same outputs and gradients (tests hold each to a naive double loop)."""


def pick(num_tokens: int, k: int, gate_up_Egd: Tensor) -> str:
    """The fastest way, by name, for this shape, dtype and device."""
    return "sorted_slices"


class ExpertBank(nn.Module):
    """E SwiGLU experts: `gate_up` [E, 2f, d] and `down` [E, d, f]."""

    def __init__(self, num_experts: int, d_model: int, d_expert: int) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(num_experts, 2 * d_expert, d_model))
        self.down = nn.Parameter(torch.empty(num_experts, d_model, d_expert))
        self.way: str | None = None
        """Name of the way to compute by; None picks by shape, dtype and device."""

    def forward(self, x_Td: Tensor, expert_TK: Tensor, gate_TK: Tensor, sent_TK: Tensor) -> Tensor:
        """Sum over the slots that were sent of gate times expert output; zero rows where nothing was. [T, d]"""
        gate_up: Tensor = self.gate_up
        down: Tensor = self.down
        device = x_Td.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            x_Td, gate_up, down = x_Td.to(dtype), gate_up.to(dtype), down.to(dtype)
        with torch.autocast(device, enabled=False):
            way = self.way or pick(expert_TK.shape[0], expert_TK.shape[1], gate_up)
            return WAYS[way](x_Td, gate_up, down, expert_TK, gate_TK, sent_TK)
