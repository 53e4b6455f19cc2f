"""Per-token gradients of an expert's first linear map, from one forward and backward pass of a MoE layer.

The gradient of W is a sum over tokens of outer products u_ng x_nd, u the gradient of the pre-activations W x. Only the
two factors are made, and only of the expert and the tokens that are asked for: while the layer runs by whichever way is
fastest, its output's gradient is noted, and what lies between is computed again for those rows.

Shapes: T tokens of this rank, K slots, E expert slots, n tokens sent to one expert (all ranks), m of them on this rank,
d model width, g rows of the first weight, f width of the intermediate activations.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from moescope import ranks
from moescope.errors import InputError
from moescope.expansion.base import TokenGradients
from moescope.model.layers import MoELayer
from moescope.objectives.base import LayerRecord


@contextmanager
def capture(layer: MoELayer) -> Iterator[Captured]:
    """Around one forward and backward pass of `layer`: what `Captured.of` needs. The pass itself is not changed.

    Raises `InputError` where the layer mixes tokens into slots: its experts receive no tokens.
    """
    captured = Captured(layer)
    handle = layer.register_forward_hook(captured.note)
    try:
        yield captured
    finally:
        handle.remove()


@dataclass
class Captured:
    """One pass of one layer. Its weights must still be those of the pass when `of` is called.

    record:     of the forward pass.
    y_grad_Td:  gradient of the layer's output, where the bank returned its weighted sum.
    slot_grads: gradients of what each slot gave, where the layer kept that for objectives: outputs [T, K, d] and, of
                experts that have any, activations [T, K, f]. Objectives' gradients are part of them.
    """

    layer: MoELayer
    record: LayerRecord | None = None
    y_grad_Td: Tensor | None = None
    slot_grads: dict[str, Tensor] = field(default_factory=dict)

    def note(self, layer: torch.nn.Module, args: Any, result: tuple[Tensor, LayerRecord]) -> None:
        """The layer's forward hook."""
        y_Td, record = result
        if not y_Td.requires_grad:
            return
        if record.routing.slots is not None:
            raise InputError("token gradients: soft routing hands its experts mixtures of tokens, not tokens.")
        self.record, self.y_grad_Td, self.slot_grads = record, None, {}
        if record.output_TKd is None:
            y_Td.register_hook(self._note_y)  # type: ignore[no-untyped-call]
            return
        kept = {"outputs": record.output_TKd, "activations": record.activation_TKf}
        if kept["activations"] is kept["outputs"]:
            del kept["activations"]
        for name, slot in kept.items():
            if slot is not None and slot.requires_grad:
                note = partial(self._note_slots, name)
                slot.register_hook(note)  # type: ignore[no-untyped-call]

    def _note_y(self, grad_Td: Tensor) -> None:
        self.y_grad_Td = grad_Td.detach()

    def _note_slots(self, name: str, grad_TKx: Tensor) -> None:
        self.slot_grads[name] = grad_TKx.detach()

    def of(self, expert: int, most: int, seed: int = 0) -> TokenGradients:
        """Of the tokens of the global batch that were sent to `expert`, in its order; a random `most` of more.

        Every rank has to ask, and gets the same. float32: computed anew from the pass's own inputs, so under bfloat16
        they are what its rounded gradients stand for. Raises `RuntimeError` before the backward pass is over.
        """
        if self.record is None or (self.y_grad_Td is None and "outputs" not in self.slot_grads):
            raise RuntimeError("token gradients are asked for, but no backward pass went through the layer.")
        routing = self.record.routing
        place_m = (routing.sent_TK & (routing.expert_TK == expert)).flatten().nonzero()[:, 0]
        place_m, counts = _share(place_m, most, seed)
        token_m = place_m // routing.expert_TK.shape[1]
        h_md = self.record.input_Td.detach().index_select(0, token_m).float()
        handed = routing.input_Td
        x_md = h_md if handed is None else handed.detach().index_select(0, token_m).float()
        u_mg = self._backward(x_md, expert, place_m, token_m)
        return TokenGradients(
            x_nd=_together(x_md, counts),
            u_ng=_together(u_mg, counts)
            / ranks.world(),  # the loss's sums multiply each rank's gradient by their number
            h_nd=None if handed is None else _together(h_md, counts),
        )

    def _backward(self, x_md: Tensor, expert: int, place_m: Tensor, token_m: Tensor) -> Tensor:
        """u of this rank's rows, [m, g]: from the outputs' gradients back through what follows the first map."""
        assert self.record is not None
        bank = self.layer.bank
        with torch.enable_grad(), torch.autocast(x_md.device.type, enabled=False):
            first_gd = bank.get_parameter(bank.first)[expert].detach().float()
            pre_mg = F.linear(x_md, first_gd).requires_grad_()
            made = dict(zip(("outputs", "activations"), bank.finish(pre_mg, expert), strict=True))
        if self.y_grad_Td is not None:
            gate_m1 = self.record.routing.gate_TK.detach().flatten().index_select(0, place_m)[:, None]
            grads = {"outputs": self.y_grad_Td.index_select(0, token_m).float() * gate_m1}
        else:
            slots = {name: grad.flatten(0, 1) for name, grad in self.slot_grads.items()}
            grads = {name: grad.index_select(0, place_m).float() for name, grad in slots.items()}
        (u_mg,) = torch.autograd.grad([made[name] for name in grads], pre_mg, list(grads.values()))
        return u_mg


def _share(place_m: Tensor, most: int, seed: int) -> tuple[Tensor, list[int]]:
    """This rank's part of a random `most` of all ranks' rows (of all, where there are no more), and how many each has.

    Which are drawn depends on `seed` and the number of rows alone.
    """
    counts = [len(place_m)]
    if ranks.world() > 1:
        counts = ranks.gathered(torch.tensor(counts, device=place_m.device)).tolist()
    total = sum(counts)
    if total <= most:
        return place_m, counts
    generator = torch.Generator().manual_seed(seed)
    drawn_n = torch.randperm(total, generator=generator)[:most].sort().values
    ends = torch.tensor(counts).cumsum(0)
    rank_n = torch.searchsorted(ends, drawn_n, right=True)
    first = int(ends[ranks.rank()]) - counts[ranks.rank()]
    mine_m = drawn_n[rank_n == ranks.rank()] - first
    return place_m[mine_m.to(place_m.device)], torch.bincount(rank_n, minlength=len(counts)).tolist()


def _together(rows_mx: Tensor, counts: list[int]) -> Tensor:
    """Every rank's rows, in order; ranks hold `counts` of them."""
    if len(counts) == 1 or max(counts) == 0:
        return rows_mx
    longest = max(counts)
    padded = F.pad(rows_mx, (0, 0, 0, longest - len(rows_mx)))
    parts = torch.split(ranks.gathered(padded), longest)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
