"""Label x expert: which values of a label an expert takes more, or less, than its share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
import plotly.graph_objects as go

from moescope.errors import InputError
from moescope.figures.base import category_axis, expert_names, figure, ratio_colorbar
from moescope.figures.counts import MIN_COUNT, get_label, get_layer, label_counts, lift
from moescope.figures.palette import BLANK, DIVERGING, SEQUENTIAL
from moescope.figures.wording import escape, number, percent, ratio
from moescope.trace.schema import Trace

_LIMITS = (1.0, 2.0, 3.0, 4.0)


class MeasurementLike(Protocol):
    """One measured number as moescope.metrics gives it."""

    @property
    def metric(self) -> str: ...
    @property
    def layer(self) -> int: ...
    @property
    def label(self) -> str | None: ...
    @property
    def value(self) -> float: ...
    @property
    def null(self) -> float | None: ...
    @property
    def n(self) -> int: ...


def label_expert(
    trace: Trace,
    layer: int,
    label: str,
    *,
    mode: Literal["lift", "share"] = "lift",
    measurements: Sequence[MeasurementLike] = (),
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
    lift_VE, base_E, enough_VE = lift(count_VE)
    total_V = count_VE.sum(1)
    present = np.flatnonzero(total_V)
    if not present.size:
        raise InputError(
            f"No token of this trace carries the label {label!r}, so there is nothing to set against experts."
        )
    rows = np.sort(present[np.argsort(-total_V[present], kind="stable")][:max_values])
    names, columns = [labels.names[i] for i in rows], expert_names(traced.meta.num_experts)
    share_VE = count_VE / np.maximum(total_V, 1)[:, None]
    hover = [
        [
            _hover(labels.names[v], e, int(count_VE[v, e]), int(total_V[v]), share_VE[v, e], base_E[e], lift_VE[v, e])
            for e in range(traced.meta.num_experts)
        ]
        for v in rows
    ]
    shown = np.where(enough_VE, lift_VE if mode == "lift" else share_VE, np.nan)[rows]
    limit = next((x for x in _LIMITS if np.nanmax(np.abs(shown), initial=0) <= x), _LIMITS[-1])
    style = (
        {"zmin": -limit, "zmax": limit, "colorscale": DIVERGING, "colorbar": ratio_colorbar(limit, "× its load")}
        if mode == "lift"
        else {
            "zmin": 0,
            "colorscale": SEQUENTIAL,
            "colorbar": {"tickformat": ".0%", "thickness": 10, "outlinewidth": 0},
        }
    )
    heat = go.Heatmap(
        x=columns, y=names, z=shown, text=np.array(hover, dtype=object), hovertemplate="%{text}<extra></extra>",
        xgap=1, ygap=1, meta={"role": "label_cells", "x": "expert", "y": "label", "label": label}, **style,
    )  # fmt: skip
    blank = np.argwhere(np.isnan(shown))
    crosses = go.Scatter(
        x=[columns[e] for _, e in blank], y=[names[v] for v, _ in blank], mode="markers", hoverinfo="skip", showlegend=False,
        marker={"symbol": "x-thin-open", "size": 6, "color": BLANK, "line": {"width": 1, "color": BLANK}},
        meta={"role": "blank"},
    )  # fmt: skip
    dropped = present.size - rows.size
    return figure(
        [heat, crosses] if len(blank) else [heat],
        name="label_expert",
        layer=layer,
        title=f"{label} × expert, layer {layer}",
        caption=_caption(trace, layer, label, mode, count_VE, measurements, bool(len(blank))),
        shown=int((labels.codes >= 0).sum()),
        total=trace.num_tokens,
        note=f"{len(rows)} of {present.size} values, the most frequent" if dropped else None,
        xaxis=category_axis("expert", columns),
        yaxis=category_axis(escape(label), names, autorange="reversed"),
    )


def _hover(value: str, expert: int, count: int, total: int, share: float, base: float, bits: float) -> str:
    lines = [
        f"<b>{escape(value)} → E{expert}</b>",
        f"{percent(share)} of its assignments ({number(count)} of {number(total)})",
        f"E{expert} takes {percent(base)} of all labelled",
        f"{ratio(2.0**bits)} its load" if np.isfinite(bits) else "not enough data to compare",
    ]
    return "<br>".join(lines)


def _caption(
    trace: Trace,
    layer: int,
    label: str,
    mode: str,
    count_VE: np.ndarray,
    measurements: Sequence[MeasurementLike],
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
        if item.metric == "mutual_information" and item.layer == layer and item.label == label:
            null = "" if item.null is None else f" (null {item.null:.3f})"
            parts.append(f"mutual information {item.value:.3f} nats{null}, n = {number(item.n)}")
    return "; ".join(parts) + "."
