"""A copy whose routing is pushed apart from its original's."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from moescope.config import doc
from moescope.expansion.base import Split
from moescope.expansion.clone import Clone, CloneConfig


@dataclass(frozen=True, kw_only=True)
class CloneDirectionConfig(CloneConfig):
    push: float = field(
        default=0.5,
        metadata=doc("how far parent's and child's rows are moved apart, each way, as a share of the row's length"),
    )
    push_logits: float | None = field(
        default=None,
        metadata=doc(
            "how far instead the two logits are moved apart, each way: the root mean square over the expert's tokens; "
            "for detectors that give a direction, and routers whose logits are products with the rows"
        ),
    )

    def __post_init__(self) -> None:
        self.require(0 < self.push < math.inf, "push", "it must be above 0.")
        good = self.push_logits is None or 0 < self.push_logits < math.inf
        self.require(good, "push_logits", "it must be above 0.")


class CloneDirection(Clone):
    """As `clone`, and the child's router row moves by +push along a direction, the parent's by as much against it.

    The direction is the detector's (the two sides that it found), or a random one. A share of the row's length is
    little where the router never learned, as one expert alone teaches it nothing: then `push_logits` parts the tokens
    at once. The rows' mean stays where it was,
    and so does, to first order, what parent and child have together; the logit shift, where the router takes one,
    centres it.
    """

    Config = CloneDirectionConfig
    config: CloneDirectionConfig
    rule = "a copy; rows of parent and child are pushed apart along the detector's direction, or a random one"
    source = "ours"

    @torch.no_grad()
    def part(self, split: Split) -> None:
        super().part(split)
        rows_Er = split.rows_Er
        if rows_Er is None:
            return
        row_r = rows_Er[split.parent].float()
        direction_r = split.direction_r
        if direction_r is not None and self.config.push_logits is not None:
            push_r = self.config.push_logits * direction_r.float()
        else:
            if direction_r is None:
                direction_r = torch.randn(len(row_r), generator=split.generator).to(row_r.device)
            length = torch.linalg.vector_norm(row_r)
            push_r = self.config.push * length * torch.nn.functional.normalize(direction_r.float(), dim=0)
        rows_Er[split.child] = (row_r + push_r).to(rows_Er.dtype)
        rows_Er[split.parent] = (row_r - push_r).to(rows_Er.dtype)
