"""Label x expert: which values of a label an expert takes more, or less, than its share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go

from moescope.errors import InputError
from moescope.figures.base import (
    category_axis,
    cell_gap,
    expert_axis,
    expert_names,
    figure,
    ratio_colorbar,
    ratio_limit,
)
from moescope.figures.counts import MIN_COUNT, get_label, get_layer, label_counts, lift
from moescope.figures.palette import BLANK, DIVERGING, SEQUENTIAL
from moescope.figures.wording import escape, number, percent, ratio
from moescope.metrics.base import Measurement
from moescope.metrics.view import alive_experts
from moescope.trace.schema import Trace


def label_expert(
    trace: Trace,
    layer: int,
    label: str,
    *,
    mode: Literal["lift", "share"] = "lift",
    measurements: Sequence[Measurement] = (),
    max_values: int = 40,
) -> go.Figure:
    """Heat-map of P(e|y) / P(e) in log2 (`lift`, one pseudo-count spread by the loads) or of P(e|y) itself (`share`).

    Counts are assignments of labelled tokens. A cell with fewer than `MIN_COUNT` assignments, seen and expected, is
    blank and crossed. The caption takes mutual information from `measurements`. At most `max_values` values are drawn,
    the most frequent.
    """
    traced, labels = get_layer(trace, layer), get_label(trace, label)
    if mode not in ("lift", "share"):
        raise InputError(f"mode = {mode!r}: a label x expert figure shows 'lift' or 'share'.")
    count_VE = label_counts(traced, labels)
    total_V = count_VE.sum(1)
    present = np.flatnonzero(total_V)
    if not present.size:
        raise InputError(
            f"No token of this trace carries the label {label!r}, so there is nothing to set against experts."
        )
    rows = np.sort(present[np.argsort(-total_V[present], kind="stable")][:max_values])
    lift_VE, base_E = lift(count_VE)
    share_VE = count_VE / np.maximum(total_V, 1)[:, None]
    values, columns = [labels.names[v] for v in rows], expert_names(alive_experts(traced))
    hover = [
        [
            _hover(labels.names[v], name, int(count_VE[v, e]), int(total_V[v]), base_E[e], lift_VE[v, e])
            for e, name in enumerate(columns)
        ]
        for v in rows
    ]
    shown_VE = np.where(np.isnan(lift_VE), np.nan, lift_VE if mode == "lift" else share_VE)[rows]
    heat = go.Heatmap(
        x=columns, y=values, z=shown_VE, text=np.array(hover, dtype=object), hovertemplate="%{text}<extra></extra>",
        xgap=cell_gap(len(columns)), ygap=1, meta={"role": "label_cells", "x": "expert", "y": "label", "label": label},
        **_scale(mode, shown_VE),
    )  # fmt: skip
    blank = np.argwhere(np.isnan(shown_VE))
    crosses = go.Scatter(
        x=[columns[e] for _, e in blank], y=[values[v] for v, _ in blank], mode="markers", hoverinfo="skip",
        marker={"symbol": "x-thin-open", "size": 6, "color": BLANK, "line": {"width": 1, "color": BLANK}},
        showlegend=False, meta={"role": "blank"},
    )  # fmt: skip
    return figure(
        [heat, crosses] if len(blank) else [heat],
        name="label_expert",
        layer=layer,
        title=f"{label} × expert, layer {layer}",
        caption=_caption(trace, layer, label, mode, count_VE, measurements, bool(len(blank))),
        shown=int((labels.codes >= 0).sum()),
        total=trace.num_tokens,
        note=f"{rows.size} of {present.size} values, the most frequent" if rows.size < present.size else None,
        xaxis=expert_axis(columns),
        yaxis=category_axis(escape(label), values, autorange="reversed"),
    )


def _scale(mode: str, shown_VE: np.ndarray) -> dict[str, Any]:
    if mode == "share":
        bar = {"title": {"text": "share", "side": "right"}, "tickformat": ".0%", "thickness": 10, "outlinewidth": 0}
        return {"zmin": 0, "colorscale": SEQUENTIAL, "colorbar": bar}
    limit = ratio_limit(shown_VE)
    return {"zmin": -limit, "zmax": limit, "colorscale": DIVERGING, "colorbar": ratio_colorbar(limit, "× its load")}


def _hover(value: str, expert: str, count: int, total: int, base: float, bits: float) -> str:
    lines = [
        f"<b>{escape(value)} → {expert}</b>",
        f"{percent(count / max(total, 1))} of its assignments ({number(count)} of {number(total)})",
        f"{expert} takes {percent(base)} of all labelled",
        f"{ratio(2.0**bits)} its load" if np.isfinite(bits) else "not enough data to compare",
    ]
    return "<br>".join(lines)


def _caption(
    trace: Trace,
    layer: int,
    label: str,
    mode: str,
    count_VE: np.ndarray,
    measurements: Sequence[Measurement],
    blank: bool,
) -> str:
    labels = trace.labels[label]
    labelled = int((labels.codes >= 0).sum())
    what = "P(expert | value) over P(expert), 1 = no preference" if mode == "lift" else "P(expert | value)"
    parts = [
        f"{what}; layer {layer}, {number(int(count_VE.sum()))} assignments of n = {number(labelled)} labelled tokens"
    ]
    if labelled < trace.num_tokens:
        parts.append(f"{number(trace.num_tokens - labelled)} unlabelled tokens are left out")
    if labels.scope == "document":
        documents = np.unique(trace.doc[labels.codes >= 0]).size
        parts.append(f"the label belongs to whole documents ({number(documents)} of them)")
    if blank:
        parts.append(f"× marks cells with fewer than {MIN_COUNT} assignments seen and expected: not enough data")
    for item in measurements:
        if (item.metric, item.layer, item.label) == ("mutual_information", layer, label) and item.value is not None:
            null = "" if item.null is None else f" (null {item.null:.3f})"
            parts.append(f"mutual information {item.value:.3f} nats{null}, n = {number(item.n)}")
    return "; ".join(parts) + "."
