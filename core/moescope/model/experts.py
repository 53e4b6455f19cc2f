"""The expert bank: SwiGLU experts in stacked tensors, and the ways of computing them.

Shapes: T tokens, K slots, N = T * K assignments, E expert slots, d model width, f expert width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moescope.model.ways import Plan, activation, fused_slices, grouped_mm, padded_bmm, sorted_slices

Way = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(x_Td, gate_up_Egd, down_Edf, expert_TK, gate_TK, sent_TK) -> y_Td, with g = 2f; all of one dtype but the gates."""


WAYS: Final[dict[str, Way]] = {
    "sorted_slices": sorted_slices,
    "fused_slices": fused_slices,
    "padded_bmm": padded_bmm,
    "grouped_mm": grouped_mm,
}
"""Every way gives the same outputs and gradients (tests hold each to a naive double loop)."""


SMALL_SLICE: Final = 2**21
"""Multiply-adds of one expert's up-projection below which a call costs more than padding (measured, two cores)."""


def pick(num_tokens: int, k: int, gate_up_Egd: Tensor) -> str:
    """The fastest way, by name, for this shape, dtype and device (docs/performance.md has the measurements)."""
    num_experts, width_g, d_model = gate_up_Egd.shape
    aligned = (d_model * gate_up_Egd.element_size()) % 16 == 0 and (width_g // 2 * gate_up_Egd.element_size()) % 16 == 0
    if gate_up_Egd.is_cuda and gate_up_Egd.dtype == torch.bfloat16 and aligned:
        return "grouped_mm"
    slice_work = num_tokens * k / num_experts * d_model * (width_g // 2)
    return "padded_bmm" if slice_work < SMALL_SLICE else "fused_slices"


class Bank(nn.Module, ABC):
    """E experts in stacked parameters, d -> d each.

    per_expert: names of the parameters, whose rows are expert slots: what growth copies.
    first:      name of the one that the input meets first.
    """

    per_expert: ClassVar[tuple[str, ...]]
    first: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.way: str | None = None
        """Name of the way to compute by; None picks by shape, dtype and device."""

    @abstractmethod
    def forward(self, x_Td: Tensor, expert_TK: Tensor, gate_TK: Tensor, sent_TK: Tensor) -> Tensor:
        """Sum over the slots that were sent of gate times expert output; zero rows where nothing was. [T, d]"""

    @abstractmethod
    def per_slot(self, x_Td: Tensor, expert_TK: Tensor, sent_TK: Tensor) -> tuple[Tensor, Tensor]:
        """Unweighted outputs [T, K, d] and intermediate activations [T, K, f] of each slot; zero where not sent."""

    @abstractmethod
    def finish(self, pre_ng: Tensor, expert: int) -> tuple[Tensor, Tensor]:
        """Unweighted outputs [n, d] and intermediate activations [n, f] of one expert, from what its first map gave."""

    def every(self, x_Td: Tensor) -> Tensor:
        """Forced outputs of every expert, [T, E, d]."""
        num_experts = self.get_parameter(self.first).shape[0]
        expert_TE = torch.arange(num_experts, device=x_Td.device).expand(len(x_Td), -1)
        return self.per_slot(x_Td, expert_TE, torch.ones_like(expert_TE, dtype=torch.bool))[0]


class ExpertBank(Bank):
    """E SwiGLU experts: `gate_up` [E, 2f, d] and `down` [E, d, f]."""

    per_expert = ("gate_up", "down")
    first = "gate_up"

    def __init__(self, num_experts: int, d_model: int, d_expert: int) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(num_experts, 2 * d_expert, d_model))
        self.down = nn.Parameter(torch.empty(num_experts, d_model, d_expert))

    def forward(self, x_Td: Tensor, expert_TK: Tensor, gate_TK: Tensor, sent_TK: Tensor) -> Tensor:
        x_Td, gate_up, down = self._cast(x_Td)
        with torch.autocast(x_Td.device.type, enabled=False):
            way = self.way or pick(expert_TK.shape[0], expert_TK.shape[1], gate_up)
            return WAYS[way](x_Td, gate_up, down, expert_TK, gate_TK, sent_TK)

    def _cast(self, x_Td: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The input and the weights, in autocast's dtype where it is on."""
        device = x_Td.device.type
        if not torch.is_autocast_enabled(device):
            return x_Td, self.gate_up, self.down
        dtype = torch.get_autocast_dtype(device)
        return x_Td.to(dtype), self.gate_up.to(dtype), self.down.to(dtype)

    def per_slot(self, x_Td: Tensor, expert_TK: Tensor, sent_TK: Tensor) -> tuple[Tensor, Tensor]:
        x_Td, gate_up, down = self._cast(x_Td)
        num_tokens, k = expert_TK.shape
        plan = Plan.of(expert_TK, sent_TK, gate_up.shape[0])
        with torch.autocast(x_Td.device.type, enabled=False):
            outputs, activations = [], []
            slices = torch.split(x_Td.index_select(0, plan.token_S), plan.counts)
            for x_nd, gate_up_gd, down_df in zip(slices, gate_up.unbind(), down.unbind(), strict=True):
                act_nf = activation(x_nd, gate_up_gd)
                activations.append(act_nf)
                outputs.append(F.linear(act_nf, down_df))
        spread = [
            parts[0].new_zeros(num_tokens * k, parts[0].shape[1]).index_copy(0, plan.order_S, torch.cat(parts))
            for parts in (outputs, activations)
        ]
        return spread[0].view(num_tokens, k, -1), spread[1].view(num_tokens, k, -1)

    def finish(self, pre_ng: Tensor, expert: int) -> tuple[Tensor, Tensor]:
        gate_nf, up_nf = pre_ng.chunk(2, dim=-1)
        act_nf = F.silu(gate_nf) * up_nf
        return F.linear(act_nf, self.down[expert].to(pre_ng.dtype)), act_nf
