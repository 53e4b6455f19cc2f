"""A sweep's frontier: held-out loss against the number of experts, fixed sets beside growth."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Protocol

import plotly.graph_objects as go

from moescope.figures.base import axis, figure
from moescope.figures.palette import CATEGORICAL, MAX_DISTINCT, NEUTRAL
from moescope.figures.wording import escape


class Spread(Protocol):
    """A mean with its interval, `moescope.sweep.stats.Interval`."""

    @property
    def mean(self) -> float: ...
    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...
    @property
    def n(self) -> int: ...


class Rung(Protocol):
    """One variant, as `moescope.sweep.frontiers` gives it."""

    @property
    def variant(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def ladder(self) -> str: ...
    @property
    def grown(self) -> bool: ...
    @property
    def experts(self) -> Spread: ...
    @property
    def loss(self) -> Spread: ...


class End(Protocol):
    """One finished run."""

    @property
    def variant(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def experts(self) -> float: ...
    @property
    def loss(self) -> float: ...


def frontier(
    rungs: Sequence[Rung], ends: Sequence[End] = (), *, unit: str = "nats", floor: float | None = None
) -> go.Figure:
    """Mean loss over seeds per variant at its number of experts, with 95 % t-intervals of both.

    Fixed sets that share a router and its options are one line; their mean at each number of experts is dotted. Grown
    sets are stars, and each of their runs a small dot, for their number of experts differs from seed to seed.
    """
    fixed = [rung for rung in rungs if not rung.grown]
    ladders = list(dict.fromkeys(rung.ladder for rung in fixed))
    traces: list[Any] = []
    for index, ladder in enumerate(ladders):
        traces.append(_ladder([rung for rung in fixed if rung.ladder == ladder], ladder, _colour(index)))
    if len(ladders) > 1:
        traces.append(_grid_mean(fixed))
    for index, rung in enumerate((rung for rung in rungs if rung.grown), start=len(ladders)):
        traces += _grown(rung, ends, _colour(index))
    shapes = [] if floor is None else [_floor_line(floor)]
    seeds = sorted({rung.loss.n for rung in rungs})
    return figure(
        traces,
        name="frontier",
        title="Loss against experts",
        caption=_caption(seeds, unit, floor),
        xaxis=axis("experts at the end", rangemode="tozero"),
        yaxis=axis(escape(f"loss on held-out data ({unit})")),
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        hovermode="closest",
        shapes=shapes,
    )


def _colour(index: int) -> str:
    return CATEGORICAL[index] if index < MAX_DISTINCT else NEUTRAL


def _ladder(rungs: Sequence[Rung], name: str, colour: str) -> go.Scatter:
    return go.Scatter(
        x=[rung.experts.mean for rung in rungs],
        y=[rung.loss.mean for rung in rungs],
        mode="lines+markers",
        name=escape(f"fixed: {name}"),
        line={"width": 2, "color": colour},
        marker={"size": 6, "color": colour},
        error_y=_bars([rung.loss for rung in rungs]),
        text=[_told(rung) for rung in rungs],
        hovertemplate="%{text}<extra></extra>",
        meta={"role": "curve"},
    )


def _grid_mean(fixed: Sequence[Rung]) -> go.Scatter:
    ordered = sorted(fixed, key=lambda rung: rung.experts.mean)
    by_size = {size: list(group) for size, group in groupby(ordered, key=lambda rung: round(rung.experts.mean))}
    means = {size: sum(rung.loss.mean for rung in group) / len(group) for size, group in by_size.items()}
    return go.Scatter(
        x=list(means),
        y=list(means.values()),
        mode="lines",
        name="fixed: mean of the grid",
        line={"width": 2, "dash": "dot", "color": NEUTRAL},
        text=[f"{size} experts: mean of {len(by_size[size])} fixed variants" for size in means],
        hovertemplate="%{text}<br>%{y:.4f}<extra></extra>",
        meta={"role": "curve"},
    )


def _grown(rung: Rung, ends: Sequence[End], colour: str) -> list[Any]:
    mine = [end for end in ends if end.variant == rung.variant]
    name = escape(rung.label)
    runs = go.Scatter(
        x=[end.experts for end in mine],
        y=[end.loss for end in mine],
        mode="markers",
        name=f"{name}: each run",
        marker={"size": 6, "color": colour, "opacity": 0.55},
        text=[f"seed {end.seed}: {end.experts:g} experts, loss {end.loss:.4f}" for end in mine],
        hovertemplate="%{text}<extra>%{fullData.name}</extra>",
        legendgroup=rung.variant,
        showlegend=False,
        meta={"role": "curve"},
    )
    mean = go.Scatter(
        x=[rung.experts.mean],
        y=[rung.loss.mean],
        mode="markers",
        name=name,
        marker={"size": 14, "symbol": "star", "color": colour},
        error_x=_bars([rung.experts]),
        error_y=_bars([rung.loss]),
        text=[_told(rung)],
        hovertemplate="%{text}<extra></extra>",
        legendgroup=rung.variant,
        meta={"role": "curve"},
    )
    return [runs, mean]


def _bars(spreads: Sequence[Spread]) -> dict[str, Any]:
    up = [0.0 if spread.high is None else spread.high - spread.mean for spread in spreads]
    down = [0.0 if spread.low is None else spread.mean - spread.low for spread in spreads]
    return {"type": "data", "array": up, "arrayminus": down, "thickness": 1.5, "width": 4}


def _told(rung: Rung) -> str:
    experts = f"{rung.experts.mean:.3g}"
    if rung.experts.low is not None and rung.experts.high is not None and rung.experts.high > rung.experts.low:
        experts += f" ({rung.experts.low:.1f} to {rung.experts.high:.1f})"
    loss = f"{rung.loss.mean:.4f}"
    if rung.loss.low is not None and rung.loss.high is not None:
        loss += f" ({rung.loss.low:.4f} to {rung.loss.high:.4f})"
    return f"{escape(rung.label)}<br>experts {experts}<br>loss {loss}<br>n = {rung.loss.n} seeds"


def _floor_line(floor: float) -> dict[str, Any]:
    return {
        "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": floor, "y1": floor,
        "line": {"width": 1, "dash": "dash", "color": NEUTRAL},
    }  # fmt: skip


def _caption(seeds: Sequence[int], unit: str, floor: float | None) -> str:
    if not seeds:
        return "No variant has a finished run yet."
    n = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    lowest = "" if floor is None else f" Dashed: the lowest loss that any model can reach on this data, {floor:.4f}."
    return (
        f"Mean held-out loss in {unit} per token or item, and experts alive at the end (mean over MoE layers); "
        f"n = {n} seeds each, bars are 95 % t-intervals over seeds.{lowest}"
    )
