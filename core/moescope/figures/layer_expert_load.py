"""Layer x expert: how evenly each layer uses its experts."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from moescope.figures.base import (
    category_axis,
    cell_gap,
    expert_axis,
    expert_names,
    figure,
    ratio_colorbar,
    ratio_limit,
)
from moescope.figures.counts import Load, layer_load
from moescope.figures.palette import DIVERGING
from moescope.figures.wording import number, percent, ratio
from moescope.trace.schema import Trace


def layer_expert_load(trace: Trace) -> go.Figure:
    """Heat-map of load ratio (load times E, 1 = even) for every MoE layer and expert, in log2 around 1.

    Cells are blank where a layer has no such expert. The null in each hover is even routing of the same number of
    tokens: 1 plus or minus two standard deviations.
    """
    loads = {layer: layer_load(trace.layers[layer]) for layer in trace.layer_ids}
    width = max(int(load.expert_E.max(initial=-1)) + 1 for load in loads.values())
    value_LE = np.full((len(loads), width), np.nan)
    hover_LE = np.full((len(loads), width), "", dtype=object)
    for row, (layer, load) in enumerate(loads.items()):
        with np.errstate(divide="ignore"):
            value_LE[row, load.expert_E] = np.log2(load.load_E * load.num_experts)
        hover_LE[row, load.expert_E] = _hovers(layer, load)
    limit = ratio_limit(value_LE)
    value_LE = np.where(np.isneginf(value_LE), -limit, value_LE)
    rows, columns = [f"L{layer}" for layer in loads], expert_names(range(width))
    heat = go.Heatmap(
        x=columns, y=rows, z=value_LE, zmin=-limit, zmax=limit, colorscale=DIVERGING,
        colorbar=ratio_colorbar(limit, "load / even"), text=hover_LE, hovertemplate="%{text}<extra></extra>",
        hoverongaps=False, xgap=cell_gap(len(columns)), ygap=1, meta={"role": "cells", "x": "expert", "y": "layer"},
    )  # fmt: skip
    return figure(
        [heat],
        name="layer_expert_load",
        title="Load per layer and expert",
        caption=(
            "Share of assignments of each expert over an even share (1 = even), per MoE layer; "
            f"n = {number(trace.num_tokens)} tokens. Assignments are what the router wanted, before any drop. The null "
            "in each hover is even routing of independent tokens."
        ),
        shown=trace.num_tokens,
        total=trace.num_tokens,
        xaxis=expert_axis(columns),
        yaxis=category_axis("MoE layer", rows, autorange="reversed"),
    )


def _hovers(layer: int, load: Load) -> list[str]:
    null = f"even routing: 1 ± {2 * load.std * load.num_experts:.2g} (2 sd)"
    return [
        f"<b>L{layer} · E{expert}</b><br>{ratio(share * load.num_experts)} an even share<br>"
        f"load {percent(share)} ({number(count)} of {number(load.assignments)} assignments)<br>{null}"
        + (f"<br>{number(dropped)} of them dropped" if load.dropped else "")
        for expert, share, count, dropped in zip(
            load.expert_E.tolist(), load.load_E.tolist(), load.count_E.tolist(), load.dropped_E.tolist(), strict=True
        )
    ]
