"""What a step draws: a function of the run's seed and the step, so that no generator's state has to be kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

_NOISE = 3
"""Branch of the run's seed for what a forward pass draws."""


@contextmanager
def noise(seed: int, step: int, device: torch.device) -> Iterator[None]:
    """Random numbers that are a function of (seed, step) alone; the caller's generator is left as it was."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(np.random.SeedSequence([seed, _NOISE, step]).generate_state(1)[0]))
        yield
