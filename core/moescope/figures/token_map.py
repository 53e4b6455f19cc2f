"""The token map: every point is a token, placed by its router input, coloured by what the reader asks about."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from moescope.errors import InputError
from moescope.figures.base import axis, figure
from moescope.figures.counts import confidence, get_label, get_layer
from moescope.figures.hover import token_hovers
from moescope.figures.palette import HIGHLIGHTED, MAX_DISTINCT, NEUTRAL, SEQUENTIAL, label_colours, layer_colours
from moescope.figures.sampling import stratified
from moescope.figures.wording import escape, number, percent
from moescope.projection.base import Projection
from moescope.trace.schema import LayerTrace, Trace


@dataclass(frozen=True)
class _Group:
    """Points that share a colour: `member` marks them, `key` is how the page selects them."""

    name: str
    key: dict[str, Any]
    color: str
    member: np.ndarray
    hollow: bool = False


def token_map(
    trace: Trace,
    layer: int,
    *,
    color: str = "expert",
    projection: Projection | None = None,
    max_points: int = 12_000,
    seed: int = 0,
    text: bool = True,
    webgl: bool = False,
    ranges: tuple[tuple[float, float], tuple[float, float]] | None = None,
    again: Sequence[str] = (),
) -> go.Figure:
    """Scatter of the sampled tokens' router inputs in the plane, one trace per category.

    color:      `expert` (a token's best expert), `confidence`, or the name of a label.
    projection: positions of `trace.sample`'s tokens; None computes PCA.
    max_points: more tokens than this are thinned, stratified by expert, and the figure says so.
    text:       False leaves token text out of the hover, for a page that has it already.
    webgl:      draw with WebGL, for very many points. It compiles its drawing commands at run time and shows nothing
                under a Content-Security-Policy without 'unsafe-eval', so the page draws SVG (12,000 points in 0.5 s).
    ranges:     of x and y, the same for every map of a series; None: what holds the points.
    again:      kinds of events after which a live page asks for it again.

    Raises `InputError` for a trace without hidden vectors, an unknown layer or colour, or a projection of other tokens.
    """
    traced = get_layer(trace, layer)
    if trace.sample is None or traced.hidden_nd is None:
        raise InputError(
            f"This trace kept no hidden vectors of layer {layer}, so there is nothing to place on a map; record it "
            "with a sample of tokens."
        )
    placed = projection if projection is not None else _pca(traced)
    if placed.xy.shape != (len(trace.sample), 2):
        raise InputError(
            f"The projection has shape {placed.xy.shape}, but the trace sampled {len(trace.sample)} tokens."
        )
    top_n = traced.top1_T[trace.sample]
    keep = stratified(top_n, max_points, seed)
    token, xy, top = trace.sample[keep].astype(np.int32), placed.xy[keep], top_n[keep]
    hover = np.array(token_hovers(trace, traced, token) if text else [""] * len(token), dtype=object)
    kind = go.Scattergl if webgl else go.Scatter
    size = 7 if len(token) <= 800 else 5 if len(token) <= 4000 else 4
    traces: list[Any] = []
    for group in _groups(trace, traced, layer, color, token):
        at = np.flatnonzero(group.member)
        traces.append(
            kind(
                x=xy[at, 0].astype(np.float32), y=xy[at, 1].astype(np.float32), mode="markers", name=escape(group.name),
                customdata=token[at], text=hover[at].tolist() if text else None,
                hovertemplate="%{text}<extra></extra>" if text else None, hoverinfo=None if text else "none",
                marker=_marker(traced, group, token[at], size, color),
                legendrank=1000 + len(traces), showlegend=color != "confidence",
                meta={"role": "tokens", "group": group.key, "experts": top[at].tolist()},
            )
        )  # fmt: skip
    if len(traces) > MAX_DISTINCT + 1:
        for drawn in traces:
            drawn.showlegend = drawn.marker.color != NEUTRAL
    shown, sampled, total = len(token), len(trace.sample), trace.num_tokens
    return figure(
        sorted(traces, key=lambda drawn: (drawn.marker.color != NEUTRAL, -len(drawn.customdata))),
        name="token_map",
        layer=layer,
        title=f"Token map, layer {layer}",
        caption=_caption(traced, layer, color, placed, shown, total),
        shown=shown,
        total=total,
        note=_note(shown, sampled, total),
        again=again,
        xaxis=axis(showgrid=False, showticklabels=False, range=ranges and ranges[0]),
        yaxis=axis(showgrid=False, showticklabels=False, range=ranges and ranges[1], scaleanchor="x", scaleratio=1),
        dragmode="pan",
        legend=_legend(color, [drawn.name for drawn in traces if drawn.showlegend]),
    )


def _pca(traced: LayerTrace) -> Projection:
    from moescope.projection.projecting import project

    assert traced.hidden_nd is not None
    return project(traced.hidden_nd, "pca")


def _groups(trace: Trace, traced: LayerTrace, layer: int, color: str, token: np.ndarray) -> Iterator[_Group]:
    """The categories of the points, in the order of the legend; categories without points are left out."""
    if color == "confidence":
        yield _Group("confidence", {"confidence": True}, "", np.ones(len(token), bool))
    elif color == "expert":
        top = traced.top1_T[token]
        for expert, shade in enumerate(layer_colours(trace, layer)):
            if (top == expert).any():
                yield _Group(f"E{expert}", {"expert": expert}, shade, top == expert)
        if (top < 0).any():
            yield _Group("no expert", {"expert": -1}, NEUTRAL, top < 0, hollow=True)
    else:
        labels = get_label(trace, color)
        code = labels.codes[token]
        for value, shade in enumerate(label_colours(labels.names)):
            if (code == value).any():
                yield _Group(labels.names[value], {"label": color, "value": labels.names[value]}, shade, code == value)
        if (code < 0).any():
            yield _Group("unlabelled", {"label": color, "value": None}, NEUTRAL, code < 0, hollow=True)


def _marker(traced: LayerTrace, group: _Group, token: np.ndarray, size: int, color: str) -> dict[str, Any]:
    if color == "confidence":
        value, name = confidence(traced)
        bar = {"title": {"text": name, "side": "right"}, "thickness": 10, "outlinewidth": 0, "ticks": ""}
        scale = {"colorscale": SEQUENTIAL, "colorbar": bar, "showscale": True}
        return {"color": value[token].astype(np.float32), "size": size, "opacity": 0.85} | scale
    style = {"symbol": "circle-open", "line": {"width": 1.2}} if group.hollow else {"line": {"width": 0}}
    return {"color": group.color, "size": size, "opacity": 0.85} | style


def _legend(color: str, names: list[str]) -> dict[str, Any]:
    title = {"expert": "best expert", "confidence": ""}.get(color, escape(color))
    made: dict[str, Any] = {"itemsizing": "constant", "tracegroupgap": 0, "title": {"text": title}}
    longest = max((len(name) for name in names), default=0)
    if len(names) > 10 and longest <= 5:
        made["title"] |= {"side": "top"}
        made |= {"orientation": "h", "x": 0, "y": -0.02, "yanchor": "top", "entrywidth": 8 + 7 * longest}
    return made


def _caption(traced: LayerTrace, layer: int, color: str, placed: Projection, shown: int, total: int) -> str:
    best = "each token's best expert"
    if traced.meta.width > MAX_DISTINCT:
        best += f" (the {HIGHLIGHTED} most used; all others grey)"
    named = {"expert": best, "confidence": f"the {confidence(traced)[1]}"}
    held = f", a plane with {percent(sum(placed.explained))} of their variance" if placed.explained else ""
    return (
        f"Router inputs of layer {layer} (the vectors that were routed), n = {number(shown)} of {number(total)} "
        f"tokens, placed by {placed.method.upper()}{held}. Trustworthiness {placed.trustworthiness:.2f} with "
        f"{placed.neighbours} neighbours: 1 if neighbours on the map are neighbours in the model. "
        f"Colour: {named.get(color, f'the label {color}')}." + (f" {placed.note}" if placed.note else "")
    )


def _note(shown: int, sampled: int, total: int) -> str | None:
    if shown == total:
        return None
    if shown == sampled:
        return f"{number(shown)} of {number(total)} tokens: those whose router inputs the trace kept"
    kept = "" if sampled == total else f", out of the {number(sampled)} whose router inputs the trace kept"
    return f"{number(shown)} of {number(total)} tokens, stratified by expert{kept}"
