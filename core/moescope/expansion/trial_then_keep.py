"""A trial: an added expert stays if the loss falls by enough while it is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from moescope.config import Config, doc
from moescope.expansion.base import Acceptor, Measure, State, Verdict


@dataclass(frozen=True, kw_only=True)
class TrialThenKeepConfig(Config):
    trial_steps: int = field(default=50, metadata=doc("optimizer steps from a growth to its verdict"))
    share: float = field(default=0.03, metadata=doc("least fall of the held-out loss, as a share of it, that keeps it"))
    roll_back: bool = field(
        default=True,
        metadata=doc("a refused expert's parent becomes again what it was; false: it stays as the trial left it"),
    )

    def __post_init__(self) -> None:
        self.require(self.trial_steps >= 1, "trial_steps", "at least 1.")
        self.require(0 <= self.share < 1, "share", "it must lie in [0, 1).")


class TrialThenKeep(Acceptor):
    """After `trial_steps` the child stays only if the held-out loss has fallen by `share` since the growth.

    While one is on trial no block grows, so that the fall is due to one growth (and to what training gave anyway: on a
    loss plateau, where `conflict` looks, that is little). A refused child is removed; its parent's weights, router row,
    shift and moments are put back to what they were before the growth, as it had begun to leave half its tokens to the
    child. Patience counts refusals in a row.
    """

    Config = TrialThenKeepConfig
    config: TrialThenKeepConfig
    rule = "after a trial, kept only if the held-out loss fell by a share since the growth"
    source = "ours"

    def __init__(self, config: TrialThenKeepConfig, num_slots: int, patience: int) -> None:
        super().__init__(config, num_slots, patience)
        self.keeps_parent, self.takes = config.roll_back, config.trial_steps
        self.trial = torch.tensor([-1, -1, -1])
        """Parent, child and step of the growth; -1: none is on trial."""
        self.before = torch.tensor(torch.nan, dtype=torch.float64)
        self.left = torch.tensor(patience)

    def began(self, step: int, parent: int, child: int, loss_before: float) -> None:
        self.trial = torch.tensor([parent, child, step])
        self.before = torch.tensor(loss_before, dtype=torch.float64)

    def busy(self) -> bool:
        return int(self.trial[1]) >= 0

    def retired(self, slot: int) -> None:
        if slot in self.trial[:2].tolist():
            self.trial = torch.tensor([-1, -1, -1])

    def after_step(self, step: int, measure: Measure) -> Verdict | None:
        parent, child, began = self.trial.tolist()
        if child < 0 or step < began + self.config.trial_steps:
            return None
        before, after = float(self.before), measure.now()
        fell = 1 - after / before if before else 0.0
        kept = after <= (1 - self.config.share) * before
        self.left = torch.tensor(self.patience) if kept else self.left - 1
        self.trial = torch.tensor([-1, -1, -1])
        left = int(self.left)
        return Verdict(
            parent=parent,
            child=child,
            kept=kept,
            loss_before=before,
            loss_after=after,
            why=f"The held-out loss fell by {fell:.2%} in {step - began} steps; the least is {self.config.share:.2%}.",
            patience=left,
            give_up=left <= 0,
            roll_back=not kept and self.config.roll_back,
        )

    def state(self) -> State:
        return {"trial": self.trial, "before": self.before, "left": self.left}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.trial, self.before, self.left = state["trial"], state["before"], state["left"]
