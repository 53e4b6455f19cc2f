"""A home that a watched run is read from, and a probe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from moescope.data.base import TokenSet
from watch_cases import Read


@pytest.fixture
def probe() -> TokenSet:
    """Documents of 5, 32 and 40 random tokens: shorter than, equal to and longer than a sequence."""
    lengths = [5, 32, 40]
    total = sum(lengths)
    ends = np.arange(1, total + 1, dtype=np.int32)
    return TokenSet(
        kind="text",
        inputs=np.random.default_rng(0).integers(0, 97, total).astype(np.int32),
        doc=np.repeat(np.arange(3), lengths).astype(np.int32),
        labels={},
        source={"corpus": "random", "synthetic": True, "documents": ["a", "b", "c"]},
        text=bytes(total),
        start=ends - 1,
        end=ends,
    )


@pytest.fixture
def read(home: Path) -> Iterator[Callable[[], Read]]:
    opened: list[Read] = []

    def make() -> Read:
        opened.append(Read(home))
        return opened[-1]

    yield make
    for item in opened:
        item.store.close()
