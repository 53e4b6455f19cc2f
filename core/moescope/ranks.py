"""Sums over the processes ("ranks") of a data-parallel run. In a single process nothing is done and nothing is copied.

Each rank holds an equal number of rows of the global batch, in order. A statistic that a router or an objective takes
from its batch goes through here, so that every rank has the global one: `summed` for sums (a mean is
`summed(total) / summed(count)`), `gathered` where the rows themselves are needed, `global_rows` for noise that a single
process would draw in one piece. What ranks decide by, they take from the first one: `agreed`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed

_alone = 0


def world() -> int:
    """Ranks that statistics are summed over: 1 outside a data-parallel run, and within `alone`."""
    if _alone or not (distributed.is_available() and distributed.is_initialized()):
        return 1
    return distributed.get_world_size()


def rank() -> int:
    """This process's number, from 0; 0 where `world()` is 1."""
    return distributed.get_rank() if world() > 1 else 0


@contextmanager
def alone() -> Iterator[None]:
    """Within, nothing is summed: for what each rank does for itself, or one rank does while the others wait."""
    global _alone
    _alone += 1
    try:
        yield
    finally:
        _alone -= 1


def summed(value: Tensor) -> Tensor:
    """The sum of `value` over the ranks, on every rank.

    Gradients are summed as well: where every rank computes the same loss from summed statistics, the mean of the ranks'
    gradients is the gradient of that loss.
    """
    if world() == 1:
        return value
    result: Tensor = _Summed.apply(value)  # type: ignore[no-untyped-call]
    return result


def gathered(rows_Tx: Tensor) -> Tensor:
    """Every rank's rows, in the order of the global batch; without gradient."""
    if world() == 1:
        return rows_Tx.detach()
    parts = [torch.empty_like(rows_Tx) for _ in range(world())]
    distributed.all_gather(parts, rows_Tx.detach().contiguous())
    return torch.cat(parts)


def agreed(value: Tensor) -> Tensor:
    """The first rank's `value`, on every rank: for decisions that must not differ by a rounding. Without gradient."""
    if world() == 1:
        return value.detach()
    device = torch.device("cuda") if distributed.get_backend() == "nccl" else value.device
    sent = value.detach().to(device, copy=True)
    distributed.broadcast(sent, src=0)
    return sent.to(value.device)


def global_rows(num_rows: int) -> tuple[int, int]:
    """Where this rank's `num_rows` rows begin in the global batch, and how many the global batch has."""
    return rank() * num_rows, world() * num_rows


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone()
        distributed.all_reduce(total)
        return total
