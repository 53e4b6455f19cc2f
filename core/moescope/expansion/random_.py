"""Growth at random: the control for whether a detector's choice matters."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from moescope.config import Config, doc
from moescope.expansion.base import Detector, Finding, View


@dataclass(frozen=True, kw_only=True)
class RandomConfig(Config):
    rate: float = field(default=0.02, metadata=doc("chance of a growth per block and step"))

    def __post_init__(self) -> None:
        self.require(0 <= self.rate <= 1, "rate", "it must lie in [0, 1].")


class Random(Detector):
    """With a fixed chance per step, some living expert, all alike; drawn from the seed, the block and the step."""

    Config = RandomConfig
    config: RandomConfig
    rule = "with a fixed chance per step, a living expert drawn at random"
    source = "ours, a control"
    why = "random"

    def look(self, view: View) -> Finding:
        draw = np.random.default_rng([self.seed, view.step])
        fired_E, chosen = torch.zeros_like(view.alive_E), None
        if draw.random() < self.config.rate:
            chosen = int(draw.choice(view.alive_E.nonzero()[:, 0].numpy()))
            fired_E[chosen] = True
        return Finding(signals={"grad_norm": view.norm_E}, thresholds={}, fired_E=fired_E, chosen=chosen)
