"""What goes into a model and what comes out, and the loss between them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from moescope.errors import InputError
from moescope.objectives.base import LayerRecord
from moescope.ranks import summed

IGNORED = -100
"""Target of a position that has none."""


@dataclass(frozen=True)
class Batch:
    """B sequences of S positions, padded at the end.

    inputs:   int64 [B, S] token ids, or float32 [B, S, d_in] rows.
    valid:    bool [B, S], False for padding; the valid positions of a sequence come first.
    target:   int64 [B, S] next token (-100: none), or [B] class, or float32 [B, m] values, or None.
    position: int64 [B, S], None for 0, 1, 2, ... in every sequence.
    label:    int64 [B, S], the label that the router reads (`ModelConfig.label`), -1 for none; None: it reads none.
    """

    inputs: Tensor
    valid: Tensor
    target: Tensor | None = None
    position: Tensor | None = None
    label: Tensor | None = None

    def __post_init__(self) -> None:
        if self.inputs.shape[:2] != self.valid.shape:
            raise InputError(f"Batch: inputs are {tuple(self.inputs.shape)}, valid is {tuple(self.valid.shape)}.")
        if self.valid.device.type == "cpu" and bool((self.valid[:, 1:] & ~self.valid[:, :-1]).any()):
            raise InputError("Batch: padding must come after the valid positions of a sequence.")

    def to(self, device: str | torch.device) -> Batch:
        """The same batch on `device`."""
        tensors = {name: value.to(device) for name, value in vars(self).items() if value is not None}
        return replace(self, **tensors)

    def scored_from(self, first: int) -> Batch:
        """The same batch without next-token targets before position `first`."""
        if first == 0 or self.target is None or self.target.ndim == 1 or self.target.is_floating_point():
            return self
        target = self.target.clone()
        target[:, :first] = IGNORED
        return replace(self, target=target)


@dataclass(frozen=True)
class ModelOutput:
    """logits: [B, S, V] for next tokens, [B, C] for classes, [B, m] for values. records: one per MoE layer, in order.

    causal_from: positions before it see later ones, so `loss` leaves their next tokens out.
    """

    logits: Tensor
    records: tuple[LayerRecord, ...]
    causal_from: int = 0


def num_targets(batch: Batch) -> int:
    """Tokens, or items, of this batch that have a target."""
    if batch.target is None:
        return 0
    if batch.target.is_floating_point():
        return len(batch.target)
    return int((batch.target != IGNORED).sum())


def loss(output: ModelOutput, batch: Batch) -> Tensor:
    """Mean cross-entropy in nats per token, or per item for classes; float32. 0 where nothing has a target.

    For values, the mean over items of the mean squared error of their values. In a data-parallel run, the mean over the
    batches of all ranks.
    """
    target = batch.scored_from(output.causal_from).target
    if target is None:
        raise InputError("This batch has no targets, so there is no loss.")
    if target.is_floating_point():
        error = (output.logits.float() - target).square()
        return summed(error.sum()) / summed(torch.tensor(error.numel(), device=error.device)).clamp_min(1)
    logits, target = output.logits.float().flatten(0, -2), target.flatten()
    total = F.cross_entropy(logits, target, ignore_index=IGNORED, reduction="sum")
    return summed(total) / summed((target != IGNORED).sum()).clamp_min(1)
