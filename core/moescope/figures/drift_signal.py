"""What the growth detector saw of one expert: its signals over the steps, with the thresholds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from moescope.errors import InputError
from moescope.events import Event
from moescope.figures.base import axis, figure
from moescope.figures.drift import distance, evaluations, thresholds, unseen, value_of
from moescope.figures.lives import the_layer
from moescope.figures.marks import AGAIN, marked
from moescope.figures.palette import CATEGORICAL, NEUTRAL
from moescope.figures.panels import panels
from moescope.figures.steps import step_axis
from moescope.figures.wording import escape, number

FIRED = CATEGORICAL[11]
ZONE = "rgba(222,120,0,0.13)"


def drift_signal(
    events: Iterable[Event], layer: int | None = None, *, expert: int | None = None, max_points: int = 3000
) -> go.Figure:
    """One expert's signals that have thresholds, a panel each; the side on which it fires is shaded.

    expert: None: the one that was duplicated last; before any was, the one that is nearest to firing. Thinning keeps
            what fired.

    Raises `InputError` for a layer or an expert that the detector never looked at.
    """
    log = list(events)
    layer = the_layer(log, layer)
    asked = evaluations(log, layer)
    known = thresholds(asked)
    experts = sorted({int(each) for _, told in asked for each in told["experts"]})
    if expert is None:
        expert = _telling(asked, list(known))
    elif expert not in experts:
        raise InputError(f"The detector never looked at expert {expert} of layer {layer}.")
    mine = [(step, told) for step, told in asked if expert in told["experts"]]
    kept = _thinned(mine, expert, max_points)
    domains, made = panels(list(known)), []
    for place, (signal, at) in enumerate(known.items()):
        made += [curve.update(showlegend=False) for curve in _curve(kept, expert, signal, at, place)]
    drawn = figure(
        made,
        name="drift_signal",
        layer=layer,
        title=f"Drift signals of E{expert}, layer {layer}",
        caption=_caption(layer, expert, mine, known) if mine else unseen(log, layer),
        shown=len(kept),
        total=len(mine),
        note=f"{number(len(kept))} of {number(len(mine))} evaluations, all that fired among them"
        if len(kept) < len(mine)
        else None,
        again=("drift", *AGAIN),
        options={"expert": experts},
        xaxis=step_axis(log, anchor=f"y{len(known)}" if len(known) > 1 else "y"),
        shapes=[shape for place, at in enumerate(known.values()) for shape in _shapes(at, place)],
        **_axes(domains, kept, expert, known),
    )
    return marked(drawn, log, layer)


def _telling(asked: Sequence[tuple[int, Mapping[str, Any]]], signals: Sequence[str]) -> int:
    chosen = [told["chosen"] for _, told in asked if told.get("chosen") is not None]
    if chosen:
        return int(chosen[-1])
    for _, told in reversed(asked):
        near = {int(each): distance(told, each, signals) for each in told["experts"]}
        known = {each: value for each, value in near.items() if np.isfinite(value)}
        if known:
            return max(known, key=lambda each: known[each])
    return int(asked[-1][1]["experts"][0]) if asked and asked[-1][1]["experts"] else 0


def _thinned(
    mine: Sequence[tuple[int, Mapping[str, Any]]], expert: int, most: int
) -> list[tuple[int, Mapping[str, Any]]]:
    """Evenly spaced evaluations, the first and the last, and every one at which the expert fired."""
    if len(mine) <= most:
        return list(mine)
    even = set(np.linspace(0, len(mine) - 1, most).round().astype(int).tolist())
    return [item for place, item in enumerate(mine) if place in even or _has_fired(item[1], expert)]


def _has_fired(told: Mapping[str, Any], expert: int) -> bool:
    return bool(told["fired"][told["experts"].index(expert)])


def is_log(values: Sequence[float], at: float) -> bool:
    """Whether a signal is drawn on a logarithmic axis: all positive, and over more than a factor of thirty."""
    return at > 0 and all(value > 0 for value in values) and max((*values, at)) / min((*values, at)) > 30


def _values(kept: Sequence[tuple[int, Mapping[str, Any]]], expert: int, signal: str) -> list[float]:
    found = (value_of(told, expert, signal) for _, told in kept)
    return [float("nan") if value is None else value for value in found]


def _axes(
    domains: Sequence[tuple[float, float]],
    kept: Sequence[tuple[int, Mapping[str, Any]]],
    expert: int,
    known: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    made = {}
    for place, ((signal, at), domain) in enumerate(zip(known.items(), domains, strict=True)):
        values = [value for value in _values(kept, expert, signal) if np.isfinite(value)]
        options: dict[str, Any] = {"domain": list(domain), "anchor": "x"}
        limit = float(at["at"])
        if is_log(values, limit):
            low, high = np.log10(min((*values, limit))), np.log10(max((*values, limit)))
            room = 0.06 * (high - low)
            options |= {"type": "log", "dtick": 1, "exponentformat": "power", "range": [low - room, high + room]}
        else:
            low, high = min((*values, limit)), max((*values, limit))
            room = 0.08 * (high - low or abs(high) or 1.0)
            options |= {"range": [low - room, high + room]}
        made[f"yaxis{place + 1}" if place else "yaxis"] = axis(escape(signal), **options)
    return made


def _curve(
    kept: Sequence[tuple[int, Mapping[str, Any]]], expert: int, signal: str, at: Mapping[str, Any], place: int
) -> list[go.Scatter]:
    step, value, name = [step for step, _ in kept], _values(kept, expert, signal), f"y{place + 1}" if place else "y"
    group = {"expert": expert}
    hover = f"step %{{x}}<br>{escape(signal)} %{{y:.3g}} (fires {at['fires']} {at['at']:.3g})<extra>E{expert}</extra>"
    line = go.Scatter(
        x=step, y=value, mode="lines+markers", name=escape(signal), yaxis=name, line={"width": 1.5, "color": NEUTRAL},
        marker={"size": 4, "color": NEUTRAL}, hovertemplate=hover, meta={"role": "curve", "group": group},
    )  # fmt: skip
    fired = [i for i, (_, told) in enumerate(kept) if _has_fired(told, expert)]
    dots = go.Scatter(
        x=[step[i] for i in fired], y=[value[i] for i in fired], mode="markers", name="fired", yaxis=name,
        marker={"symbol": "diamond", "size": 10, "color": FIRED, "line": {"width": 1, "color": "#ffffff"}},
        hovertemplate=hover.replace("<extra>", "<br><b>fired</b><extra>"), meta={"role": "curve", "group": group},
    )  # fmt: skip
    return [line, dots] if fired else [line]


def _shapes(at: Mapping[str, Any], place: int) -> list[dict[str, Any]]:
    """The threshold, and the side of it on which the expert fires (drawn far beyond what the axis shows)."""
    name, limit = f"y{place + 1}" if place else "y", float(at["at"])
    far = limit * 1e-12 if at["fires"] == "below" and limit > 0 else limit - 1e6 if at["fires"] == "below" else None
    far = limit + 1e6 * max(1.0, abs(limit)) if far is None else far
    across = {"xref": "paper", "x0": 0, "x1": 1, "yref": name}
    return [
        {"type": "rect", **across, "y0": limit, "y1": far, "fillcolor": ZONE, "line": {"width": 0}, "layer": "below"},
        {"type": "line", **across, "y0": limit, "y1": limit, "line": {"color": FIRED, "width": 1.5, "dash": "dash"}},
    ]  # fmt: skip


def _caption(
    layer: int, expert: int, mine: Sequence[tuple[int, Mapping[str, Any]]], known: Mapping[str, Mapping[str, Any]]
) -> str:
    if not known:
        return f"This run's detector has no threshold: it looked at E{expert} {number(len(mine))} times."
    tests = " and ".join(f"{name} is {at['fires']} {at['at']:.3g}" for name, at in known.items())
    return (
        f"E{expert} of layer {layer} at each evaluation of the detector. Dashed: the threshold; shaded: the side on "
        f"which it fires. It fires (diamonds) where {tests}. A gap: the signal is not yet defined."
    )
