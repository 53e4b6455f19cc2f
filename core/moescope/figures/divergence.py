"""How differently groups of tokens are routed, from snapshot to snapshot of a run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import plotly.graph_objects as go

from moescope.errors import InputError
from moescope.events import Event
from moescope.figures.base import ABOVE, axis, figure
from moescope.figures.lives import last_step
from moescope.figures.marks import AGAIN, marked
from moescope.figures.palette import CATEGORICAL
from moescope.figures.panels import panels
from moescope.figures.steps import step_axis
from moescope.figures.tightness import Points, lines, series_of
from moescope.figures.wording import escape

AFTER, BEFORE = "routing_jsd", "routing_jsd_full"
CURVES = ((BEFORE, "before selection", CATEGORICAL[15], "dash"), (AFTER, "after selection", CATEGORICAL[7], "solid"))
"""Measure, name, colour and dash of the curves of a panel."""

MOST_PANELS = 4


def divergence(
    points: Points, layer: int, *, label: str | None = None, events: Iterable[Event] = (), until: int | None = None
) -> go.Figure:
    """Mean pairwise Jensen-Shannon divergence of routing between a label's values, before and after selection.

    label: None: every label, a panel each, the first `MOST_PANELS`. until: step that the axis reaches at least; None:
    the last one of the events. Raises `InputError` for one that no snapshot has.
    """
    log = list(events)
    known = list(dict.fromkeys(str(i.label) for _, found in points for i in found if i.metric == AFTER and i.label))
    if label is not None and points and label not in known:
        raise InputError(f"The probe has no label {label!r}; its labels are {', '.join(known) or 'none'}.")
    shown = known[:MOST_PANELS] if label is None else [label]
    domains, made = panels(shown), []
    axes: dict[str, Any] = {}
    for place, (name, domain) in enumerate(zip(shown, domains, strict=True)):
        number = str(place + 1) if place else ""
        for metric, title, colour, dash in CURVES:
            found = series_of(points, metric, layer, name)
            drawn = lines(found, title, colour, f"y{number}", first=metric == AFTER, dash=dash)
            made += drawn if place == 0 else [curve.update(showlegend=False) for curve in drawn]
        axes[f"yaxis{number}"] = axis(escape(name), domain=list(domain), anchor="x", rangemode="tozero")
    whole = figure(
        made,
        name="divergence",
        layer=layer,
        title=f"Routing divergence, layer {layer}",
        caption=_caption(layer, shown, points),
        shown=len(shown),
        total=len(shown) if label is not None else len(known),
        note=f"{len(shown)} of {len(known)} labels" if label is None and len(shown) < len(known) else None,
        again=("snapshot", *AGAIN),
        options={"label": known},
        xaxis=step_axis(
            log,
            last_step(log) if until is None else until,
            anchor=f"y{len(shown)}" if len(shown) > 1 else "y",
            visible=bool(shown),
        ),
        legend=ABOVE,
        **axes,
    )
    return marked(whole, log, layer)


def _caption(layer: int, shown: list[str], points: Points) -> str:
    if not shown:
        return "No snapshot of the probe has labels to compare."
    sizes = [item.n for _, found in points for item in found if item.metric == AFTER and item.layer == layer]
    return (
        f"Jensen-Shannon divergence (bits, 0 to 1) between the mean routing of each two values of a label in layer "
        f"{layer}, mean over pairs; n up to {max(sizes, default=0):,} tokens. After selection: shares of assignments; "
        "before: the router's full distribution. Grey: labels permuted (among documents for a label of documents). "
        "Bars: 95 % intervals, documents resampled."
    )
