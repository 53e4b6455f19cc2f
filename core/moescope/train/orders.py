"""Orders by hand to a run in progress, and how every process of it hears the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Final, Literal, get_args

import torch
from torch import distributed

from moescope import ranks
from moescope.errors import InputError
from moescope.train.share import Share

Kind = Literal["pause", "go_on", "checkpoint", "split", "retire"]

POLL: Final = 0.25
"""Seconds between two questions for orders while a run is paused."""


@dataclass(frozen=True)
class Order:
    """One order. `layer` (index of the block) and `expert` (slot) say what is split or retired.

    Raises `InputError` for a kind that there is not.
    """

    id: str
    kind: Kind
    layer: int | None = None
    expert: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise InputError(f"{str(self.kind)[:40]!r} is no order; there are {', '.join(get_args(Kind))}.")


Orders = Callable[[], Sequence[Order]]
"""Asked again and again for what is to be done now. An order may be given until its `order` event has come: one that a
checkpoint of the run already holds is not done twice."""


@dataclass(frozen=True)
class Ear:
    """What a run hears between two steps. Of several processes any may be told to stop; the first is given orders."""

    share: Share
    stop: Callable[[], bool]
    orders: Orders

    def __call__(self) -> tuple[bool, tuple[Order, ...]]:
        """Whether to stop, and what is ordered; every process hears the same."""
        orders = tuple(self.orders()) if self.share.rank == 0 else ()
        if self.share.world == 1:
            return self.stop(), orders
        text = json.dumps([asdict(order) for order in orders]).encode() if orders else b""
        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        heard = ranks.summed(torch.tensor([int(self.stop()), len(text)], device=device))
        stop, length = heard.tolist()
        if length:
            letters = torch.zeros(length, dtype=torch.uint8, device=device)
            if text:
                letters.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
            distributed.broadcast(letters, src=0)
            orders = tuple(Order(**plain) for plain in json.loads(bytes(letters.tolist())))
        return bool(stop), orders
