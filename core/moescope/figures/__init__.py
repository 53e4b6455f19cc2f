"""Figures: trace or events in, `plotly.graph_objects.Figure` out, one figure per file.

Cards (`moescope.figures.cards`) are the views that are text; colours are in `moescope.figures.palette`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from moescope.figures.divergence import divergence
from moescope.figures.drift import drift
from moescope.figures.drift_signal import drift_signal
from moescope.figures.expert_load import expert_load
from moescope.figures.frontier import frontier
from moescope.figures.label_expert import label_expert
from moescope.figures.layer_expert_load import layer_expert_load
from moescope.figures.lineage import lineage
from moescope.figures.load_over_time import load_over_time
from moescope.figures.loss import loss
from moescope.figures.objectives import objectives
from moescope.figures.race import race
from moescope.figures.tightness import tightness
from moescope.figures.token_flow import token_flow
from moescope.figures.token_map import token_map

FIGURES: Final[dict[str, Callable[..., Any]]] = {
    "layer_expert_load": layer_expert_load,
    "token_map": token_map,
    "label_expert": label_expert,
    "expert_load": expert_load,
    "loss": loss,
    "load_over_time": load_over_time,
    "objectives": objectives,
    "drift": drift,
    "drift_signal": drift_signal,
    "lineage": lineage,
    "token_flow": token_flow,
    "tightness": tightness,
    "divergence": divergence,
    "race": race,
    "frontier": frontier,
}
