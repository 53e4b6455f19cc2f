"""How tight the experts' clusters are, from snapshot to snapshot of a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import plotly.graph_objects as go

from moescope.events import Event
from moescope.figures.base import ABOVE, axis, figure
from moescope.figures.lives import last_step
from moescope.figures.marks import AGAIN, marked
from moescope.figures.palette import BAND, CATEGORICAL, NEUTRAL
from moescope.figures.panels import panels
from moescope.figures.steps import step_axis
from moescope.metrics.base import Measurement

Points = Sequence[tuple[int, Sequence[Measurement]]]
"""(step, measurements) of a run's snapshots, in order."""

MEASURES: Final = {"silhouette": "silhouette", "within_between": "within / between"}


def tightness(points: Points, layer: int, *, events: Iterable[Event] = (), until: int | None = None) -> go.Figure:
    """Silhouette and within/between of the router inputs by first expert, with interval and null, over snapshots.

    until: step that the axis reaches at least; None: the last one of the events.
    """
    log = list(events)
    domains, made = panels(MEASURES), []
    axes: dict[str, Any] = {}
    for place, ((metric, title), domain) in enumerate(zip(MEASURES.items(), domains, strict=True)):
        name = str(place + 1) if place else ""
        found = series_of(points, metric, layer)
        ratio = metric == "within_between"
        drawn = lines(found, "value, 95 % interval", CATEGORICAL[7], f"y{name}", first=place == 0, ratio=ratio)
        made += drawn if place == 0 else [curve.update(showlegend=False) for curve in drawn]
        scale = {"type": "log", "dtick": 1} if ratio else {}
        axes[f"yaxis{name}"] = axis(title, domain=list(domain), anchor="x", visible=bool(points), **scale)
    sizes = [item.n for _, found in points for item in found if item.layer == layer and item.metric in MEASURES]
    whole = figure(
        made,
        name="tightness",
        layer=layer,
        title=f"Tightness, layer {layer}",
        caption=_caption(layer, max(sizes, default=0)),
        shown=len(points),
        total=len(points),
        again=("snapshot", *AGAIN),
        xaxis=step_axis(
            log, last_step(log) if until is None else until, anchor=f"y{len(MEASURES)}", visible=bool(points)
        ),
        legend=ABOVE,
        **axes,
    )
    return marked(whole, log, layer)


def series_of(points: Points, metric: str, layer: int, label: str | None = None) -> list[tuple[int, Measurement]]:
    """(step, measurement) of one measure of one layer, where it has a value."""
    return [
        (step, item)
        for step, found in points
        for item in found
        if (item.metric, item.layer, item.label) == (metric, layer, label) and item.value is not None
    ]


def lines(
    found: Sequence[tuple[int, Measurement]],
    title: str,
    colour: str,
    yaxis: str,
    *,
    first: bool,
    dash: str = "solid",
    ratio: bool = False,
) -> list[Any]:
    """The null's band (mean and two standard deviations), and the value with its 95 % interval.

    ratio: for a logarithmic axis; the band then ends at a tenth of the null's mean, however far it reaches.
    """
    step = [step for step, _ in found]
    nulls = [(step, item.null, item.null_std or 0.0) for step, item in found if item.null is not None]
    low = [max(null - 2 * std, null / 10) if ratio else null - 2 * std for _, null, std in nulls]
    band = go.Scatter(
        x=[s for s, _, _ in nulls] + [s for s, _, _ in reversed(nulls)],
        y=[null + 2 * std for _, null, std in nulls] + low[::-1],
        fill="toself", fillcolor=BAND, line={"width": 0}, mode="lines", yaxis=yaxis, hoverinfo="skip",
        showlegend=False, meta={"role": "blank"},
    )  # fmt: skip
    middle = go.Scatter(
        x=[s for s, _, _ in nulls], y=[null for _, null, _ in nulls], mode="lines+markers", yaxis=yaxis,
        name="null ± 2 sd", line={"width": 1.5, "color": NEUTRAL, "dash": "dot"}, marker={"size": 4},
        showlegend=first, hovertemplate="step %{x}<br>null %{y:.3g}<extra></extra>", meta={"role": "blank"},
    )  # fmt: skip
    lows = [
        max(0.0, item.value - item.interval[0]) if item.interval and item.value is not None else 0.0
        for _, item in found
    ]
    highs = [
        max(0.0, item.interval[1] - item.value) if item.interval and item.value is not None else 0.0
        for _, item in found
    ]
    value = go.Scatter(
        x=step, y=[item.value for _, item in found], mode="lines+markers", yaxis=yaxis, name=title,
        line={"width": 2, "color": colour, "dash": dash}, marker={"size": 7},
        error_y={"type": "data", "array": highs, "arrayminus": lows, "thickness": 1.2, "width": 3},
        text=[_words(item) for _, item in found], showlegend=True, meta={"role": "curve"},
        hovertemplate="step %{x}<br>%{fullData.name} %{y:.3g}<br>%{text}<extra></extra>",
    )  # fmt: skip
    return [band, middle, value]


def _reach(found: Sequence[tuple[int, Measurement]], side: int) -> list[float]:
    """How far each interval reaches below (0) or above (1) its value."""
    return [
        abs(item.interval[side] - item.value) if item.interval and item.value is not None else 0.0 for _, item in found
    ]


def _words(item: Measurement) -> str:
    said = []
    if item.interval:
        said.append(f"95 % interval {item.interval[0]:.3g} to {item.interval[1]:.3g}")
    if item.null is not None:
        said.append(f"null {item.null:.3g}" + (f", p = {item.p:.2g}" if item.p is not None else ""))
    return "<br>".join((*said, f"n = {item.n:,} tokens"))


def _caption(layer: int, n: int) -> str:
    if not n:
        return f"No snapshot of layer {layer} has vectors of two experts yet."
    return (
        f"Router inputs of layer {layer} (the sampled probe tokens, n = {n:,}), grouped by each token's first expert. "
        "Silhouette: higher is tighter. Within / between: trace of the scatter within experts over that between them; "
        "lower is tighter. Grey: the same with experts shuffled among the tokens, which moves as their number does. "
        "Bars: 95 % intervals, documents resampled."
    )
