"""How a layer's load moved while the model trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from moescope.events import Event
from moescope.figures.base import axis, category_axis, expert_names, figure, ratio_colorbar
from moescope.figures.lives import Life, alive_at, family_order, lives, moe_layers, of_layer, the_layer
from moescope.figures.loss import current, thinned, thinning_note
from moescope.figures.marks import AGAIN, marked
from moescope.figures.palette import DIVERGING, MAX_DISTINCT, expert_colours
from moescope.figures.steps import step_axis

BESIDE = 12
"""Experts up to which the legend stands beside the river, in its order; more stand below."""


def load_over_time(events: Iterable[Event], layer: int | None = None, *, max_points: int = 1500) -> go.Figure:
    """Share of assignments per expert over the steps of a run, one MoE layer (None: the first).

    Up to `MAX_DISTINCT` experts: a river of stacked areas that a live page extends, every child beside its parent.
    More: a heat-map of load ratio, which a live page fetches again. An expert has a load only while it lives. Raises
    `InputError` for a layer that the run did not report.
    """
    events = list(events)
    layer = the_layer(events, layer)
    log, found = current(events, "load"), lives(events, layer)
    keep = thinned(len(log), max_points)
    chosen = [log[i] for i in keep]
    order = family_order(found)
    load_SE, alive_S = _loads(chosen, layer, order, found)
    step = np.array([event.step for event in chosen], np.int32)
    areas = max(order, default=0) < MAX_DISTINCT
    data, options = _areas(step, load_SE, order) if areas else _heat(step, load_SE, order, alive_S)
    known = moe_layers(events)
    index = known.index(layer) if layer in known else 0
    living = {life.expert for life in found if life.died is None}
    drawn = figure(
        data,
        name="load_over_time",
        layer=layer,
        title=f"Load over time, layer {layer}",
        caption=_caption(layer, found, len(order), areas),
        shown=len(chosen),
        total=len(log),
        note=thinning_note(len(chosen), len(log)),
        grow=[
            {"kind": "load", "trace": place, "x": "step", "y": f"layers.{index}.load.{expert}"}
            for place, expert in enumerate(order)
            if areas and expert in living
        ],
        again=AGAIN if areas else ("load", *AGAIN),
        xaxis=step_axis(events),
        **options,
    )
    return marked(drawn, events, layer)


def _caption(layer: int, found: Sequence[Life], count: int, areas: bool) -> str:
    if not count:
        return "Nothing yet: the experts' load appears with the first step."
    share = f"Share of assignments per expert of layer {layer}, at each step over that step's tokens."
    return f"{share} {_even(found, count, areas)}"


def _even(found: Sequence[Life], count: int, areas: bool) -> str:
    if all(life.parent is None and life.died is None for life in found):
        return f"An even share is 1/{count}."
    beside = ", from the bottom up each child beside its parent" if areas else ""
    return f"An even share is 1 over the experts alive at that step. An expert has a load while it lives{beside}."


def _loads(
    chosen: Sequence[Event], layer: int, order: Sequence[int], found: Sequence[Life]
) -> tuple[np.ndarray, np.ndarray]:
    """float64 [S, E] in the order given, NaN where an expert does not live, and [S] how many live."""
    load_SE = np.full((len(chosen), len(order)), np.nan)
    for row, event in enumerate(chosen):
        told = (of_layer(event, layer) or {}).get("load", ())
        alive = alive_at(found, event.step)
        for column, expert in enumerate(order):
            if expert in alive and expert < len(told) and told[expert] is not None:
                load_SE[row, column] = told[expert]
    return load_SE, np.isfinite(load_SE).sum(axis=1)


def _areas(step: np.ndarray, load_SE: np.ndarray, order: Sequence[int]) -> tuple[list[Any], dict[str, Any]]:
    shades = expert_colours(max(order, default=-1) + 1)
    data = []
    for column, expert in enumerate(order):
        lived = np.flatnonzero(np.isfinite(load_SE[:, column]))
        until = lived[-1] + 1 if lived.size else 0
        data.append(
            go.Scatter(
                x=step[:until], y=load_SE[:until, column], mode="lines", name=f"E{expert}", stackgroup="load",
                line={"width": 0.5, "color": shades[expert]}, fillcolor=shades[expert],
                hovertemplate="%{y:.1%}<extra>%{fullData.name}</extra>",
                meta={"role": "curve", "group": {"expert": expert}},
            )
        )  # fmt: skip
    below = {"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom", "traceorder": "normal"}
    return data, {
        "yaxis": axis("share of assignments", tickformat=".0%", range=[0, 1]),
        "legend": {"traceorder": "reversed"} if len(order) <= BESIDE else below,
    }


def _heat(
    step: np.ndarray, load_SE: np.ndarray, order: Sequence[int], alive_S: np.ndarray
) -> tuple[list[Any], dict[str, Any]]:
    limit = 3.0
    with np.errstate(divide="ignore"):
        value_ES = np.clip(np.log2(load_SE.T * alive_S), -limit, limit)
    names = expert_names(order)
    heat = go.Heatmap(
        x=step, y=names, z=value_ES, customdata=load_SE.T, zmin=-limit, zmax=limit, colorscale=DIVERGING,
        colorbar=ratio_colorbar(limit, "load / even"), meta={"role": "step_cells", "y": "expert"}, hoverongaps=False,
        hovertemplate="step %{x}<br>%{y}: %{customdata:.2%}<extra></extra>",
    )  # fmt: skip
    return [heat], {"yaxis": category_axis("expert", names, autorange="reversed")}
