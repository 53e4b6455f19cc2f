"""The expert slots of one MoE layer: copying one onto another, removing one, masking one for a moment.

Everything is in place but the alive mask, which becomes a new tensor: records of past forward passes keep theirs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final, Literal, Protocol

import torch
from torch import Tensor

from moescope.model.layers import MoELayer

LOG_2: Final = math.log(2)


class SlotOptimizer(Protocol):
    """What growth asks of an optimizer. `layer` is the index of the block."""

    def copy_slot(self, layer: int, parent: int, child: int, moments: Literal["zero", "copy"]) -> None:
        """The child's moments become zero, or its parent's."""

    def clear_slot(self, layer: int, slot: int) -> None:
        """A slot died: its moments become zero."""

    def read_slot(self, layer: int, slot: int) -> dict[str, Tensor]:
        """A copy of the moments of a slot."""

    def write_slot(self, layer: int, slot: int, kept: Mapping[str, Tensor]) -> None:
        """Put back what `read_slot` gave."""

    def masks_changed(self) -> None:
        """Some `alive_E` became another tensor."""


class LayerSlots:
    """index: of the block. following: the next MoE layer, whose router may keep statistics of this one's experts."""

    def __init__(self, index: int, layer: MoELayer, following: MoELayer | None, optimizer: SlotOptimizer) -> None:
        self.index, self.layer, self.following, self.optimizer = index, layer, following, optimizer

    @property
    def rows(self) -> dict[str, Tensor]:
        """What holds one row per slot, by its name in the layer."""
        tensors = dict([*self.layer.named_parameters(), *self.layer.named_buffers()])
        names = [f"bank.{name}" for name in self.layer.bank.per_expert]
        names += [f"router.{name}" for name in self.layer.router.per_expert]
        return {name: tensors[name] for name in names}

    def alive(self) -> list[int]:
        ids: list[int] = self.layer.alive_E.nonzero()[:, 0].tolist()
        return ids

    def free(self) -> int | None:
        """The lowest dead slot."""
        dead = (~self.layer.alive_E).nonzero()[:, 0]
        return int(dead[0]) if len(dead) else None

    @torch.no_grad()
    def copy(self, parent: int, child: int, moments: Literal["zero", "copy"]) -> None:
        """`child` comes alive as `parent`: weights, gradients where there are any, the router's state, moments."""
        for name, rows in self.rows.items():
            if name.startswith("bank."):
                rows[child] = rows[parent]
        self.layer.router.copy_slot(parent, child)
        for grad in self._grads():
            grad[child] = grad[parent]
        if self.layer.shift_E is not None:
            self.layer.shift_E[child] = self.layer.shift_E[parent]
        if self.following is not None:
            self.following.router.copy_cluster(parent, child)
        self._set_alive(child, True)
        self.optimizer.copy_slot(self.index, parent, child, moments)
        self.optimizer.masks_changed()

    @torch.no_grad()
    def halve(self, parent: int, child: int) -> None:
        """Log 2 less on both logits: together they keep what the parent had."""
        assert self.layer.shift_E is not None
        self.layer.shift_E[parent] -= LOG_2
        self.layer.shift_E[child] = self.layer.shift_E[parent]

    @torch.no_grad()
    def point(self, slot: int, direction_d: Tensor) -> None:
        """The slot's router state starts anew, its row along a token vector, as long as living rows are on average."""
        router, rows_Er = self.layer.router, self.layer.router.rows_Ed
        assert rows_Er is not None
        others_Ar = rows_Er[self.alive()]
        towards_r = router.towards(direction_d.to(rows_Er.device)).float()
        router.forget_slot(slot)
        length = torch.linalg.vector_norm(others_Ar.float(), dim=1).mean()
        rows_Er[slot] = (length * torch.nn.functional.normalize(towards_r, dim=0)).to(rows_Er.dtype)
        for name, rows in self.rows.items():
            if name.startswith("router.") and rows.grad is not None:
                rows.grad[slot] = 0
        if self.layer.shift_E is not None:
            self.layer.shift_E[slot] = 0

    @torch.no_grad()
    def remove(self, slot: int) -> None:
        """The slot dies: no gradient, no moments, no router state; its expert's weights stay, unused."""
        for grad in self._grads():
            grad[slot] = 0
        self.layer.router.forget_slot(slot)
        if self.layer.shift_E is not None:
            self.layer.shift_E[slot] = 0
        if self.following is not None:
            self.following.router.forget_cluster(slot)
        self._set_alive(slot, False)
        self.optimizer.clear_slot(self.index, slot)
        self.optimizer.masks_changed()

    @contextmanager
    def masked(self, slot: int) -> Iterator[None]:
        """Within, the slot counts as dead; afterwards everything is what it was."""
        before = self.layer.alive_E
        self._set_alive(slot, False)
        try:
            yield
        finally:
            self.layer.alive_E = before

    def keep(self, slot: int) -> dict[str, Tensor]:
        """Copies of all that a slot is: weights, router state, shift, moments."""
        kept = {f"rows.{name}": rows[slot].detach().clone() for name, rows in self.rows.items()}
        if self.layer.shift_E is not None:
            kept["shift"] = self.layer.shift_E[slot].clone()
        return kept | {f"moments.{name}": m for name, m in self.optimizer.read_slot(self.index, slot).items()}

    @torch.no_grad()
    def put_back(self, slot: int, kept: Mapping[str, Tensor]) -> None:
        """The slot becomes again what `keep` copied; a gradient that it has is dropped."""
        for name, rows in self.rows.items():
            rows[slot] = kept[f"rows.{name}"].to(rows.device)
        for grad in self._grads():
            grad[slot] = 0
        if self.layer.shift_E is not None:
            self.layer.shift_E[slot] = kept["shift"]
        moments = {name.removeprefix("moments."): m for name, m in kept.items() if name.startswith("moments.")}
        self.optimizer.write_slot(self.index, slot, moments)

    def _grads(self) -> list[Tensor]:
        return [rows.grad for rows in self.rows.values() if rows.grad is not None]

    def _set_alive(self, slot: int, alive: bool) -> None:
        flipped_E = self.layer.alive_E.clone()
        flipped_E[slot] = alive
        self.layer.alive_E = flipped_E
