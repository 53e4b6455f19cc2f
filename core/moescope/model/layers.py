"""The parts of a block: norm, rotary attention, dense SwiGLU, MoE layer.

Shapes: B sequences, S positions, H heads, D head width, T = B * S tokens, d model width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moescope.model.experts import Bank
from moescope.model.ways import swiglu
from moescope.objectives.base import LayerRecord, Seen
from moescope.routers.base import Router, RouterContext, Routing, Slots


class RMSNorm(nn.Module):
    """x over its root mean square, times a weight; computed in float32 (1910.07467)."""

    def __init__(self, d_model: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps) * self.weight.float()).to(x.dtype)


def rotary_angles(position_BS: Tensor, d_head: int, base: float) -> tuple[Tensor, Tensor]:
    """cos and sin, float32 [B, 1, S, D/2], of position * base^(-2i/D) (RoFormer 2104.09864, Eq. 15)."""
    exponent = torch.arange(0, d_head, 2, dtype=torch.float32, device=position_BS.device) / d_head
    angle = position_BS[:, None, :, None].float() * base**-exponent
    return angle.cos(), angle.sin()


def sinusoids(position_BS: Tensor, d_model: int) -> Tensor:
    """float32 [B, S, d]: sin (even columns 2i) and cos (2i + 1) of position / 10000^(2i/d) (1706.03762, 3.5)."""
    column = torch.arange(0, d_model, 2, dtype=torch.float32, device=position_BS.device)
    angle = position_BS[..., None].float() * 10000.0 ** (-column / d_model)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)[..., :d_model]


def rotate(x_BHSD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (i, i + D/2) of the head by its angle."""
    first, second = x_BHSD.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x_BHSD.dtype)


class Attention(nn.Module):
    """Multi-head attention over valid positions, rotary, through SDPA."""

    def __init__(self, d_model: int, num_heads: int, causal: bool) -> None:
        super().__init__()
        self.num_heads, self.causal = num_heads, causal
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x_BSd: Tensor, cos: Tensor, sin: Tensor, valid_BS: Tensor) -> Tensor:
        """[B, S, d]. Padding comes last, so causal attention needs no mask for it: no valid position sees it."""
        batch, seq, width = x_BSd.shape
        q, k, v = self.qkv(x_BSd).view(batch, seq, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        mask = None
        if not self.causal:  # every query keeps itself, so that no row is fully masked
            mask = (valid_BS[:, None, :] | torch.eye(seq, dtype=torch.bool, device=x_BSd.device))[:, None]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=self.causal)
        return F.linear(y.transpose(1, 2).reshape(batch, seq, width), self.out.weight)


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x) (2002.05202)."""

    def __init__(self, d_model: int, d_hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(d_model, 2 * d_hidden, bias=False)
        self.down = nn.Linear(d_hidden, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return swiglu(x, self.gate_up.weight, self.down.weight)


class MoELayer(nn.Module):
    """Router, expert bank with an alive mask over its slots, and optional shared experts (as one SwiGLU, summed).

    Where slots may grow there is `shift_E`, float32, which routers that take it add to their logits.
    """

    alive_E: Tensor
    shift_E: Tensor | None

    def __init__(self, router: Router, bank: Bank, shared: SwiGLU | None, num_alive: int, shifts: bool = False) -> None:
        super().__init__()
        self.router, self.bank, self.shared = router, bank, shared
        self.register_buffer("alive_E", torch.arange(router.num_experts) < num_alive)
        self.register_buffer("shift_E", torch.zeros(router.num_experts) if shifts else None)

        self.keeps: frozenset[Seen] = frozenset()
        """What to keep for objectives; set by `Transformer.keeping`."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.shift_E is not None:
            self.shift_E = self.shift_E.float()
        return self

    def forward(
        self, x_Td: Tensor, context: RouterContext, previous: LayerRecord | None = None
    ) -> tuple[Tensor, LayerRecord]:
        """y_Td (zero rows where nothing was sent and nothing is shared), and what the layer saw and decided."""
        if self.shift_E is not None:
            context = replace(context, shift_E=self.shift_E)
        if "responses" in self.router.needs:
            context = replace(context, respond=partial(self._respond, context.alive_E))
        routing: Routing = self.router(x_Td, context)
        record = LayerRecord(
            layer=context.layer,
            routing=routing,
            alive_E=context.alive_E,
            input_Td=x_Td,
            seq=context.seq,
            rows_Ed=self.router.rows_Ed,
            previous=previous,
        )
        handed_Td = x_Td if routing.input_Td is None else routing.input_Td.to(x_Td.dtype)
        if routing.slots is not None:
            y_Td = self._through_slots(handed_Td, routing.slots, context)
        elif self.keeps:
            output_TKd, activation_TKf = self.bank.per_slot(handed_Td, routing.expert_TK, routing.sent_TK)
            y_Td = (output_TKd * routing.gate_TK.to(output_TKd.dtype)[..., None]).sum(dim=1)
            record = replace(record, output_TKd=output_TKd, activation_TKf=activation_TKf)
        else:
            y_Td = self.bank(handed_Td, routing.expert_TK, routing.gate_TK, routing.sent_TK)
        if self.shared is not None:
            y_Td = y_Td + self.shared(x_Td)
        return y_Td, record

    def _respond(self, alive_E: Tensor, x_Nd: Tensor) -> Tensor:
        responses_NEd: Tensor = self.bank.every(x_Nd)
        return responses_NEd.where(alive_E[:, None], 0.0)

    def _through_slots(self, x_Td: Tensor, slots: Slots, context: RouterContext) -> Tensor:
        """Mix each sequence's tokens into slots, run each expert on its own, mix their outputs back."""
        size, seq = context.batch, context.seq
        dispatch_BSN = slots.dispatch_TEP.view(size, seq, -1)
        combine_BSN = slots.combine_TEP.view(size, seq, -1)
        with torch.autocast(x_Td.device.type, enabled=False):
            slot_BNd = dispatch_BSN.transpose(1, 2).to(x_Td.dtype) @ x_Td.view(size, seq, -1)
            expert_N1, ones_N1, sent_N1 = handed_slots(slots, context)
            y_BNd: Tensor = self.bank(slot_BNd.flatten(0, 1), expert_N1, ones_N1, sent_N1).view_as(slot_BNd)
            return (combine_BSN.to(y_BNd.dtype) @ y_BNd).flatten(0, 1)


def handed_slots(slots: Slots, context: RouterContext) -> tuple[Tensor, Tensor, Tensor]:
    """Expert, gate and sent, [batch * E * P, 1], of the slots that the bank computes: one row a slot, gate 1."""
    num_experts, per_expert = slots.dispatch_TEP.shape[1:]
    expert_N = torch.arange(num_experts, device=slots.dispatch_TEP.device).repeat_interleave(per_expert)
    expert_N1 = expert_N.repeat(context.batch)[:, None]
    return expert_N1, torch.ones_like(expert_N1, dtype=torch.float32), context.alive_E[expert_N1]
