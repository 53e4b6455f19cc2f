"""One layer's load as bars, with the band that even routing would stay in."""

from __future__ import annotations

import plotly.graph_objects as go

from moescope.figures.base import axis, expert_axis, expert_names, figure
from moescope.figures.counts import get_layer, layer_load
from moescope.figures.palette import BAND, NEUTRAL, layer_colours
from moescope.figures.wording import number, percent, ratio
from moescope.trace.schema import Trace


def expert_load(trace: Trace, layer: int) -> go.Figure:
    """Bars of one layer's load (share of assignments) with the null's mean 1 / E and two standard deviations of it."""
    traced = get_layer(trace, layer)
    load = layer_load(traced)
    names, even, shades = expert_names(load.expert_E), 1 / load.num_experts, layer_colours(trace, layer)
    hover = [
        f"<b>L{layer} · {name}</b><br>load {percent(share)}, {ratio(share / even)} an even share<br>"
        f"{number(count)} of {number(load.assignments)} assignments"
        + (f", {number(dropped)} dropped" if load.dropped else "")
        for name, share, count, dropped in zip(
            names, load.load_E.tolist(), load.count_E.tolist(), load.dropped_E.tolist(), strict=True
        )
    ]
    bars = go.Bar(
        x=names, y=load.load_E, text=hover, textposition="none", hovertemplate="%{text}<extra></extra>",
        marker={"color": [shades[e] for e in load.expert_E], "line": {"width": 0}},
        meta={"role": "bars", "x": "expert"},
    )  # fmt: skip
    band = {"type": "rect", "xref": "paper", "x0": 0, "x1": 1, "yref": "y", "fillcolor": BAND, "line": {"width": 0}}
    line = {
        "type": "line",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "yref": "y",
        "line": {"color": NEUTRAL, "width": 1.5, "dash": "dot"},
    }
    return figure(
        [bars],
        name="expert_load",
        layer=layer,
        title=f"Load of layer {layer}'s experts",
        caption=(
            f"Share of the {number(load.assignments)} assignments that each expert of layer {layer} takes "
            f"(n = {number(load.tokens)} tokens, {_dropped(load.dropped, load.assignments)}). Dotted: an even share, "
            f"{100 * even:.3g} %; the band is two standard deviations of even routing of independent tokens."
        ),
        shown=load.tokens,
        total=load.tokens,
        xaxis=expert_axis(names),
        yaxis=axis("share of assignments", tickformat=".0%", rangemode="tozero"),
        shapes=[
            band | {"y0": max(even - 2 * load.std, 0), "y1": even + 2 * load.std},
            line | {"y0": even, "y1": even},
        ],
        bargap=0.15,
    )


def _dropped(dropped: int, assignments: int) -> str:
    return "none dropped" if not dropped else f"{percent(dropped / max(assignments, 1))} of them then dropped"
