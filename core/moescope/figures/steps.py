"""The axis of steps of a run's figures: from where the run began, to where its page ends."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from moescope.events import Event
from moescope.figures.base import axis


def first_step(log: Iterable[Event]) -> int:
    """The step at which the run began: that of its fork, else 0."""
    for event in log:
        if event.kind == "run_started":
            return int((event.payload.get("forked") or {}).get("step", 0))
    return 0


def step_axis(log: Iterable[Event], until: int | None = None, **options: Any) -> dict[str, Any]:
    """An axis from the run's first step on, that grows with what is drawn and reaches `until` at least."""
    start = first_step(log)
    reach = [start] if until is None else [start, until]
    return axis("step", autorange=True, autorangeoptions={"minallowed": start, "include": reach}, **options)
