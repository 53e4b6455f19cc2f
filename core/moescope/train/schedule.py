"""What follows from the step alone: the learning rate (linear warm-up, then a cosine), and what is due."""

from __future__ import annotations

import math


def learning_rate(step: int, *, peak: float, warmup: int, steps: int, final: float) -> float:
    """Rate of the step after `step` done ones (so 0 is the first).

    Rises linearly to `peak` at the end of `warmup` steps, then follows half a cosine to `final * peak`, which it would
    reach at `steps` (Loshchilov & Hutter, 1608.03983, Eq. 5 without restarts).
    """
    if step < warmup:
        return peak * ((step + 1) / warmup)
    share = min(1.0, (step - warmup) / max(1, steps - warmup))
    return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * share)))


def due(step: int, every: int, steps: int) -> bool:
    """Whether something that happens every so many steps happens at `step`; always at the start and the end."""
    return step in (0, steps) or (every > 0 and step % every == 0)
