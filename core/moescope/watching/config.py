"""How often what is written down of a run that is watched."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from moescope.config import Config, doc


@dataclass(frozen=True, kw_only=True)
class WatchConfig(Config):
    """Steps are optimizer steps; 0 is never. The first and the last step count as due."""

    steps: int | None = field(default=None, metadata=doc("steps that are planned, for the page's progress bar"))
    log_every: int = field(default=10, metadata=doc("steps between `train` events; each waits for the device once"))
    load_every: int = field(default=10, metadata=doc("steps between `load` events, each of the step it names"))
    snapshot_every: int = field(default=100, metadata=doc("steps between traces of the probe"))
    drift: Literal["mass", False] = field(default="mass", metadata=doc("the detector whose signals are watched"))
    drift_every: int = field(default=10, metadata=doc("steps between `drift` events where nothing fired"))
    probe_tokens: int = field(default=2048, metadata=doc("most tokens that are taken of the probe"))

    def __post_init__(self) -> None:
        self.require(self.steps is None or self.steps >= 1, "steps", "at least 1, or None where it is not known.")
        for name in ("log_every", "load_every", "snapshot_every"):
            self.require(getattr(self, name) >= 0, name, "at least 0, which is never.")
        for name in ("drift_every", "probe_tokens"):
            self.require(getattr(self, name) >= 1, name, "at least 1.")

    def due(self, step: int, every: int) -> bool:
        """Whether what happens every so many steps happens at step `step`, from 1."""
        return every > 0 and (step % every == 0 or step in (1, self.steps))
