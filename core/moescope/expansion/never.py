"""No detection: the set of experts changes by hand only."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from moescope.config import Config
from moescope.expansion.base import Detector, Finding, View


@dataclass(frozen=True, kw_only=True)
class NeverConfig(Config):
    """Nothing to choose."""


class Never(Detector):
    """Never fires: the control without growth, and what a run without `[expansion]` has. Gradient norms are told."""

    Config = NeverConfig
    rule = "never"
    source = "ours, a control"

    def look(self, view: View) -> Finding:
        return Finding(signals={"grad_norm": view.norm_E}, thresholds={}, fired_E=torch.zeros_like(view.alive_E))
