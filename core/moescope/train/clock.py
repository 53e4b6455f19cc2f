"""How long a run has taken."""

from __future__ import annotations

import time


class Clock:
    """Seconds that a run has spent on its steps, in this process and in those before it."""

    def __init__(self, seconds: float) -> None:
        self._started = time.perf_counter() - seconds

    def __call__(self) -> float:
        return time.perf_counter() - self._started

    def leave_out(self, seconds: float) -> None:
        """Do not count the `seconds` that have just passed."""
        self._started += seconds
