"""Layer x expert: how evenly each layer uses its experts."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from moescope.figures.base import category_axis, expert_names, figure, ratio_colorbar
from moescope.figures.counts import layer_load
from moescope.figures.palette import DIVERGING
from moescope.figures.wording import number, percent, ratio
from moescope.trace.schema import Trace

_LIMITS = (1.0, 2.0, 3.0, 4.0)


def layer_expert_load(trace: Trace) -> go.Figure:
    """Heat-map of load ratio (load times E, 1 = even) for every MoE layer and expert, in log2 around 1.

    Cells are blank where a layer has fewer experts than another. The null in each hover is even routing of the same
    number of tokens: 1 plus or minus two standard deviations.
    """
    layers = trace.layer_ids
    width = max(meta.num_experts for meta in trace.meta.layers)
    value_LE = np.full((len(layers), width), np.nan)
    hover_LE = np.full((len(layers), width), "", dtype=object)
    for row, layer in enumerate(layers):
        load, num_experts = layer_load(trace.layers[layer]), trace.layers[layer].meta.num_experts
        even = load.load_E * num_experts
        with np.errstate(divide="ignore"):
            value_LE[row, :num_experts] = np.log2(even)
        null = f"even routing: 1 ± {2 * load.std * num_experts:.2g} (2 sd)"
        for expert in range(num_experts):
            hover_LE[row, expert] = (
                f"<b>L{layer} · E{expert}</b><br>{ratio(even[expert])} an even share<br>"
                f"load {percent(load.load_E[expert])} ({number(int(load.count_E[expert]))} of "
                f"{number(load.assignments)} assignments)<br>{null}"
                + (f"<br>{number(int(load.dropped_E[expert]))} of them dropped" if load.dropped else "")
            )
    finite = np.abs(value_LE[np.isfinite(value_LE)])
    peak = float(finite.max()) if finite.size else 1.0
    limit = next((x for x in _LIMITS if peak <= x), _LIMITS[-1])
    value_LE = np.where(np.isneginf(value_LE), -limit, value_LE)
    heat = go.Heatmap(
        x=expert_names(width), y=[f"L{layer}" for layer in layers], z=value_LE, zmin=-limit, zmax=limit,
        colorscale=DIVERGING, colorbar=ratio_colorbar(limit, "load / even"), text=hover_LE,
        hovertemplate="%{text}<extra></extra>", hoverongaps=False, xgap=1, ygap=1,
        meta={"role": "cells", "x": "expert", "y": "layer"},
    )  # fmt: skip
    return figure(
        [heat],
        name="layer_expert_load",
        title="Load per layer and expert",
        caption=(
            f"Share of assignments of each expert over an even share (1 = even), per MoE layer; n = {number(trace.num_tokens)} "
            "tokens. Assignments are what the router wanted, before any drop. The null in each hover is even routing of "
            "independent tokens."
        ),
        shown=trace.num_tokens,
        total=trace.num_tokens,
        xaxis=category_axis("expert", expert_names(width)),
        yaxis=category_axis("MoE layer", [f"L{layer}" for layer in layers], autorange="reversed"),
    )
