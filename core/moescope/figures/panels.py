"""Panels above each other on one axis of steps."""

from __future__ import annotations

from collections.abc import Sized

GAP = 0.07


def panels(items: Sized) -> list[tuple[float, float]]:
    """The domain of each panel's y axis, the first at the top."""
    count = len(items)
    height = (1 - GAP * (count - 1)) / count if count else 1.0
    return [(max(0.0, 1 - (i + 1) * height - i * GAP), 1 - i * (height + GAP)) for i in range(count)]
