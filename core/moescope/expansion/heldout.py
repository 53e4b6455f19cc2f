"""Held-out loss for growth, and what one layer makes of the first held-out batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from moescope import ranks
from moescope.expansion.slots import LayerSlots
from moescope.model import Transformer
from moescope.objectives.base import LayerRecord
from moescope.routers.base import RouterContext

USED: Final = 0.01
"""An expert is used if it gets at least this share of an even share of the held-out tokens."""


@dataclass(frozen=True)
class Answer:
    """What a layer made of a batch: its output [T, d], and which experts were wanted, bool [T, E]; valid rows only."""

    y_Td: Tensor
    wanted_TE: Tensor

    def change(self, after: Answer, parent: int, child: int) -> tuple[float, float]:
        """Root mean square of the output's change over that of the output, and the share of tokens that chose others,
        the child counting as its parent."""
        power = float(self.y_Td.double().square().mean().sqrt())
        apart = float((after.y_Td.double() - self.y_Td.double()).square().mean().sqrt())
        as_parent_TE = after.wanted_TE.clone()
        as_parent_TE[:, parent] |= as_parent_TE[:, child]
        as_parent_TE[:, child] = False
        others_T = (as_parent_TE != self.wanted_TE).any(dim=1)
        return apart / power if power else 0.0, float(others_T.float().mean()) if len(others_T) else 0.0


class HeldOut:
    """Loss now, without an expert, and how layers answer; one evaluation serves until `changed`.

    evaluate: held-out loss in evaluation mode. Ranks take the first one's numbers.
    """

    def __init__(self, model: Transformer, evaluate: Callable[[], float]) -> None:
        self.model, self.evaluate = model, evaluate
        self._loss: float | None = None
        self._first: dict[int, tuple[Tensor, RouterContext, LayerRecord | None]] = {}
        self._sent_LE: dict[int, Tensor] = {}

    def changed(self) -> None:
        """The model is not what it was; also frees what was kept."""
        self._loss, self._first, self._sent_LE = None, {}, {}

    def loss(self) -> float:
        """Of the model as it is."""
        if self._loss is None:
            with self._noting():
                self._loss = self._evaluated()
        return self._loss

    def without(self, slots: LayerSlots, slot: int) -> float:
        """With one slot masked."""
        with slots.masked(slot):
            return self._evaluated()

    def used(self) -> Mapping[int, int]:
        """Experts of each layer that are used (`USED`)."""
        self.loss()
        counts = {}
        for index, layer in self.model.moe.items():
            alive_E = layer.alive_E.cpu()
            sent_E = self._sent_LE.get(index, torch.zeros(len(alive_E))).double()
            even = sent_E.sum() / alive_E.sum()
            counts[index] = int((alive_E & (sent_E >= USED * even) & (sent_E > 0)).sum())
        return counts

    @torch.no_grad()
    def answer(self, index: int) -> Answer:
        """Of the layer as it is, on its input in the first held-out batch as the model was at `loss`."""
        self.loss()
        layer = self.model.moe[index]
        x_Td, context, previous = self._first[index]
        context = replace(context, alive_E=layer.alive_E)
        with ranks.alone(), torch.autocast(x_Td.device.type, enabled=False):
            y_Td, record = layer(x_Td.to(next(layer.bank.parameters()).dtype), context, previous)
        routing, valid_T = record.routing, context.valid_T
        wanted_TE = torch.zeros_like(routing.probs_TE).scatter_add(1, routing.expert_TK, routing.wanted_TK.float()) > 0
        return Answer(y_Td[valid_T], wanted_TE[valid_T])

    def _evaluated(self) -> float:
        device = next(self.model.parameters()).device
        here = torch.tensor(self.evaluate(), dtype=torch.float64, device=device)
        return float(ranks.agreed(here))

    @contextmanager
    def _noting(self) -> Iterator[None]:
        self._first, self._sent_LE = {}, {}
        hooks = [layer.register_forward_hook(self._note) for layer in self.model.moe.values()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _note(self, layer: nn.Module, args: Any, result: tuple[Tensor, LayerRecord]) -> None:
        record, context = result[1], args[1]
        index, routing = record.layer, record.routing
        if index not in self._first:
            previous = args[2] if len(args) > 2 else None
            self._first[index] = (args[0].detach(), context, previous)
        sent_E = torch.zeros(routing.num_experts, dtype=torch.int64, device=routing.expert_TK.device)
        sent_E.scatter_add_(0, routing.expert_TK.flatten(), routing.sent_TK.flatten().long())
        self._sent_LE[index] = self._sent_LE.get(index, torch.zeros_like(sent_E).cpu()) + sent_E.cpu()
