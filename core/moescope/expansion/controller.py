"""Growth of one model in one run: when to look, what to change, what to say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor

from moescope.expansion.config import ExpansionConfig
from moescope.model import Transformer
from moescope.objectives.base import LayerRecord

Told = list[tuple[str, dict[str, Any]]]
"""Kinds of events, and their payloads."""


class SlotOptimizer(Protocol):
    """What growth asks of an optimizer. `layer` is the index of the block."""

    def copy_slot(self, layer: int, parent: int, child: int, moments: str) -> None:
        """The child's moments become zero, or its parent's (`moments = copy`)."""

    def clear_slot(self, layer: int, slot: int) -> None:
        """A slot died: its moments become zero."""

    def masks_changed(self) -> None:
        """Some `alive_E` changed."""


class Growth:
    """See the contract (docs/contracts.md, Growth). Every rank holds one and decides alike.

    evaluate: held-out loss now, evaluation mode, the same on every rank.
    """

    def __init__(
        self,
        config: ExpansionConfig,
        model: Transformer,
        optimizer: SlotOptimizer,
        *,
        steps: int,
        seed: int,
        evaluate: Callable[[], float],
    ) -> None:
        self.config, self.model, self.optimizer = config, model, optimizer
        self.steps, self.seed, self.evaluate = steps, seed, evaluate

    @contextmanager
    def watching(self, step: int) -> Iterator[None]:
        """Around forward and backward of one step: captures what the detector reads beyond gradients."""
        yield

    def records(self, records: Sequence[LayerRecord]) -> tuple[LayerRecord, ...]:
        """The records of a forward pass, with the pairs of duplicated experts."""
        return tuple(records)

    def losses(self, records: Sequence[LayerRecord]) -> dict[str, Tensor]:
        """What growth adds to the loss of a step, coefficients included: {"redundancy": ...} while it grows."""
        return {}

    def after_backward(self, step: int, records: Sequence[LayerRecord], loss: Tensor) -> Told:
        """Look at every layer, and grow. Gradients are averaged over ranks and not yet clipped.

        step: optimizer steps done before this one. loss: the step's training loss (this rank's, detached).
        """
        return []

    def after_step(self, step: int) -> Told:
        """Acceptances, the end of the phase, pruning. step: optimizer steps done."""
        return []

    def split(self, layer: int, expert: int, step: int) -> Told:
        """Duplicate an expert by hand. Raises `InputError` in one sentence."""
        return []

    def retire(self, layer: int, expert: int, step: int) -> Told:
        """Remove an expert by hand. Raises `InputError` in one sentence."""
        return []

    def tensors(self) -> dict[str, Tensor]:
        """State of exact resume, with `plain`."""
        return {}

    def plain(self) -> dict[str, Any]:
        return {}

    def restore(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Go on as the Growth that gave `tensors` and `plain` would have. Raises `InputError` where they do not fit."""
