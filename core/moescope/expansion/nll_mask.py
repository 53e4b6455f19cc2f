"""MASS's removal: an added expert that the model does not miss goes again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from moescope.config import Config, doc
from moescope.expansion.base import ROUNDING, Acceptor, Measure, State, Verdict


@dataclass(frozen=True, kw_only=True)
class NllMaskConfig(Config):
    tolerance: float = field(
        default=0.0, metadata=doc("most that masking may cost, as a share of the loss, to count as no harm")
    )

    def __post_init__(self) -> None:
        self.require(0 <= self.tolerance < 1, "tolerance", "it must lie in [0, 1).")


class NllMask(Acceptor):
    """Before a block's next growth, the expert added last is masked: does the held-out loss rise?

    From the second growth on. If it does not rise (by more than rounding, a millionth of it), the expert is removed and
    the block loses one of `patience`; with none left it stops growing. The one added last is never judged. Its parent
    stays as it is.
    """

    Config = NllMaskConfig
    config: NllMaskConfig
    rule = "at the next growth, mask the expert added last; no harm to the held-out loss removes it and costs patience"
    source = "MASS 2512.19765, section 3, stopping rule (γ = `patience`)"
    departs = "the held-out loss, where the released code compares on the training batch"

    def __init__(self, config: NllMaskConfig, num_slots: int, patience: int) -> None:
        super().__init__(config, num_slots, patience)
        self.last = torch.tensor([-1, -1])
        """Parent and child of the last growth; -1: none that could be judged."""
        self.left = torch.tensor(patience)

    def began(self, step: int, parent: int, child: int, loss_before: float) -> None:
        self.last = torch.tensor([parent, child])

    def retired(self, slot: int) -> None:
        if int(self.last[1]) == slot:
            self.last = torch.tensor([-1, -1])

    def before_growth(self, step: int, measure: Measure) -> Verdict | None:
        parent, child = self.last.tolist()
        if child < 0:
            return None
        with_it, without = measure.now(), measure.without(child)
        kept = without > with_it * (1 + max(self.config.tolerance, ROUNDING))
        self.left = self.left - int(not kept)
        self.last = torch.tensor([-1, -1])
        left = int(self.left)
        said = "costs" if kept else "costs nothing that counts"
        return Verdict(
            parent=parent,
            child=child,
            kept=kept,
            loss_before=without,
            loss_after=with_it,
            why=f"Masking it {said}: held-out loss {without:.5g} without it, {with_it:.5g} with it.",
            patience=left,
            give_up=left <= 0,
        )

    def state(self) -> State:
        return {"last": self.last, "left": self.left}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.last, self.left = state["last"], state["left"]
