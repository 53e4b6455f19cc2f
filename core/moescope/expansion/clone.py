"""A copy, told apart by its first gradient step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from moescope.config import Config, doc
from moescope.expansion.base import Initialiser, Split


@dataclass(frozen=True, kw_only=True)
class CloneConfig(Config):
    gradient: Literal["per_row", "whole", "both_full"] = field(
        default="per_row",
        metadata=doc(
            "on the step of the growth the parent keeps the part of its gradient along its own weights, row by row (as "
            "released) or as one vector (the paper); both_full: parent and copy keep all of it"
        ),
    )


class Clone(Initialiser):
    """The child equals its parent and gets the step's whole gradient; the parent only what lies along its own weights.

    Of the first linear weight and of the router's row; the parent's other gradients stay. `per_row` projects each row
    of the weight on its own; `whole` the flattened matrix (a router row is one row either way).
    """

    Config = CloneConfig
    config: CloneConfig
    rule = "an exact copy; on that step the parent's gradient is projected on its own weights, the copy's is whole"
    source = "MASS 2512.19765, section 3 and its released code"

    def part(self, split: Split) -> None:
        if self.config.gradient == "both_full":
            return
        for weight, grad in ((split.first_Egd, split.first_grad_Egd), (split.rows_Er, split.rows_grad_Er)):
            if weight is not None and grad is not None:
                grad[split.parent] = along(grad[split.parent], weight[split.parent], self.config.gradient == "whole")


@torch.no_grad()
def along(grad: Tensor, weight: Tensor, whole: bool) -> Tensor:
    """The part of `grad` that is parallel to `weight`: row by row, or of both flattened; 0 where the weight is 0."""
    wide, onto = grad.double(), weight.double()
    dims = tuple(range(grad.ndim)) if whole else (-1,)
    square = onto.square().sum(dims, keepdim=True)
    share = (wide * onto).sum(dims, keepdim=True) / square.where(square > 0, 1.0)
    return (share * onto).to(grad.dtype)
