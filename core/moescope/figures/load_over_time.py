"""How a layer's load moved while the model trained."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import plotly.graph_objects as go

from moescope.errors import InputError
from moescope.events import Event
from moescope.figures.base import axis, category_axis, expert_names, figure, ratio_colorbar
from moescope.figures.loss import current, thinned, thinning_note
from moescope.figures.palette import DIVERGING, MAX_DISTINCT, expert_colours


def load_over_time(events: Iterable[Event], layer: int | None = None, *, max_points: int = 1500) -> go.Figure:
    """Share of assignments per expert over the steps of a run, one MoE layer (None: the first).

    Up to `MAX_DISTINCT` experts: stacked areas that a live page extends. More: a heat-map of load ratio, which a live
    page fetches again. Raises `InputError` for a layer that the run did not report.
    """
    log = current(events, "load")
    known = [int(item["layer"]) for item in log[-1].payload["layers"]] if log else []
    if layer is None:
        layer = known[0] if known else 0
    if known and layer not in known:
        raise InputError(
            f"Layer {layer} is not an MoE layer of this run; its MoE layers are {', '.join(map(str, known))}."
        )
    index = known.index(layer) if known else 0
    keep = thinned(len(log), max_points)
    chosen = [log[i] for i in keep]
    rows = [_row(event, layer) for event in chosen]
    num_experts = max((len(row) for row in rows), default=0)
    load_SE = np.array([row + [np.nan] * (num_experts - len(row)) for row in rows], np.float64).reshape(
        len(rows), num_experts
    )
    step = np.array([event.step for event in chosen], np.int32)
    areas = num_experts <= MAX_DISTINCT
    draw = _areas if areas else _heat
    data, options = draw(step, load_SE)
    return figure(
        data,
        name="load_over_time",
        layer=layer,
        title=f"Load over time, layer {layer}",
        caption=(
            f"Share of assignments per expert of layer {layer}, at each step over that step's tokens. "
            + (f"An even share is 1/{num_experts}." if num_experts else "No load was reported yet.")
        ),
        shown=len(chosen),
        total=len(log),
        note=thinning_note(len(chosen), len(log)),
        grow=[
            {"kind": "load", "trace": e, "x": "step", "y": f"layers.{index}.load.{e}"}
            for e in range(num_experts)
            if areas
        ],
        xaxis=axis("step"),
        **options,
    )


def _row(event: Event, layer: int) -> list[float]:
    for item in event.payload["layers"]:
        if int(item["layer"]) == layer:
            return [float("nan") if x is None else float(x) for x in item["load"]]
    return []


def _areas(step: np.ndarray, load_SE: np.ndarray) -> tuple[list[Any], dict[str, Any]]:
    shades = expert_colours(load_SE.shape[1])
    data = [
        go.Scatter(
            x=step, y=load_SE[:, e], mode="lines", name=f"E{e}", stackgroup="load", line={"width": 0.5, "color": shade},
            fillcolor=shade, hovertemplate="%{y:.1%}<extra>%{fullData.name}</extra>",
            meta={"role": "curve", "group": {"expert": e}},
        )
        for e, shade in enumerate(shades)
    ]  # fmt: skip
    return data, {
        "yaxis": axis("share of assignments", tickformat=".0%", range=[0, 1]),
        "legend": {"traceorder": "reversed"},
    }


def _heat(step: np.ndarray, load_SE: np.ndarray) -> tuple[list[Any], dict[str, Any]]:
    num_experts = load_SE.shape[1]
    limit = 3.0
    with np.errstate(divide="ignore"):
        value_ES = np.clip(np.log2(load_SE.T * num_experts), -limit, limit)
    names = expert_names(range(num_experts))
    heat = go.Heatmap(
        x=step, y=names, z=value_ES, customdata=load_SE.T, zmin=-limit, zmax=limit, colorscale=DIVERGING,
        colorbar=ratio_colorbar(limit, "load / even"), meta={"role": "step_cells", "y": "expert"},
        hovertemplate="step %{x}<br>%{y}: %{customdata:.2%}<extra></extra>",
    )  # fmt: skip
    return [heat], {"yaxis": category_axis("expert", names, autorange="reversed")}
