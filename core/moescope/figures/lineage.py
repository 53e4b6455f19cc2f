"""Who split from whom, when, until when: one lane per expert, over the steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from moescope.events import Event
from moescope.figures.base import axis, figure
from moescope.figures.lives import CHANGES, Life, family_order, last_step, lives, settled, the_layer
from moescope.figures.marks import death, reason
from moescope.figures.palette import expert_colours
from moescope.figures.steps import first_step
from moescope.figures.wording import escape

LETTER, MOST_LETTERS = 6.4, 30
"""Pixels that a letter takes, about, and letters of an answer that are shown (the hover has all)."""

_ENDS = {"removed": "x", "end of growth": "triangle-down", "never reached": "triangle-down", "by hand": "star"}


def lineage(
    events: Iterable[Event], layer: int | None = None, *, answers: Mapping[int, str] | None = None
) -> go.Figure:
    """The family tree of one layer's experts: a lane from birth to death, a line from the parent at birth.

    answers: what each living expert responds to, in a few words; shown where its lane ends. Lanes are ordered so that
    no lane is crossed by a later birth, as far as slots that are used again allow it.

    Raises `InputError` for a layer that the run does not have.
    """
    log = list(events)
    layer = the_layer(log, layer)
    found, until = lives(log, layer), last_step(log)
    first = first_step(log)
    until = max(until, first)
    room = max(1, until - first) * 0.01
    order = family_order(found)
    lane = {expert: place for place, expert in enumerate(order)}
    shade = dict(enumerate(expert_colours(max(order, default=-1) + 1)))
    births = _births(log, layer)
    words = {expert: said for expert, said in (answers or {}).items() if said}
    traces: list[Any] = []
    for life in sorted(found, key=lambda life: (lane[life.expert], life.born)):
        traces += _drawn(life, lane, shade[life.expert], until, births, words)
    longest = max((len(_short(said)) for said in words.values()), default=0)
    alive = sum(life.died is None for life in found)
    return figure(
        traces,
        name="lineage",
        layer=layer,
        title=f"Lineage, layer {layer}",
        caption=_caption(layer, found, alive, bool(words)),
        shown=len(found),
        total=len(found),
        again=("load", *CHANGES),
        xaxis=axis("step", range=[first - room, until + room]),
        yaxis=axis(
            tickmode="array", tickvals=list(range(len(order))), ticktext=[f"E{expert}" for expert in order],
            range=[len(order) - 0.4, -0.6], showgrid=False,
        ),
        margin={"l": 8, "r": 16 + LETTER * longest, "t": 8, "b": 8},
        showlegend=False,
    )  # fmt: skip


def _births(log: Sequence[Event], layer: int) -> dict[tuple[int, int], Mapping[str, Any]]:
    """What was said of the birth of (child, step)."""
    return {
        (int(event.payload["child"]), event.step): event.payload
        for event in settled(log, ("expansion",))
        if event.payload.get("layer") == layer
    }


def _drawn(
    life: Life,
    lane: Mapping[int, int],
    shade: str,
    until: int,
    births: Mapping[tuple[int, int], Mapping[str, Any]],
    words: Mapping[int, str],
) -> list[go.Scatter]:
    """Line from the parent, lane, and the marks at both ends; the words that the living end with."""
    y, end = lane[life.expert], until if life.died is None else life.died
    meta = {"role": "curve", "group": {"expert": life.expert}}
    said = words.get(life.expert, "") if life.died is None else ""
    hover = _hover(life, births, said)
    short = life.died is not None and life.end.startswith("removed")
    made = [
        go.Scatter(
            x=[life.born, end], y=[y, y], mode="lines", name=f"E{life.expert}", hoverinfo="skip", meta=meta,
            line={"width": 2 if short else 5, "color": shade}, opacity=0.7 if short else 1,
        )
    ]  # fmt: skip
    if life.parent is not None and life.parent in lane:
        made.append(
            go.Scatter(
                x=[life.born, life.born], y=[lane[life.parent], y], mode="lines", hoverinfo="skip", meta=meta,
                line={"width": 1.5, "color": shade}, opacity=0.7 if short else 1,
            )
        )  # fmt: skip
    made.append(
        go.Scatter(
            x=[life.born], y=[y], mode="markers", text=[hover], hovertemplate="%{text}<extra></extra>", meta=meta,
            marker={"symbol": "circle", "size": 7 if short else 9, "color": shade},
        )
    )  # fmt: skip
    ended = life.died is not None
    symbol = _ENDS.get(life.end.split(":")[0], "x") if ended else "circle"
    made.append(
        go.Scatter(
            x=[end], y=[y], mode="markers+text" if said else "markers", text=[escape(_short(said))], customdata=[hover],
            textposition="middle right", cliponaxis=False, hovertemplate="%{customdata}<extra></extra>", meta=meta,
            marker={"symbol": symbol, "size": 10 if ended else 8, "color": shade},
        )
    )  # fmt: skip
    return made


def _short(words: str) -> str:
    return words if len(words) <= MOST_LETTERS else words[: MOST_LETTERS - 1].rstrip() + "…"


def _hover(life: Life, births: Mapping[tuple[int, int], Mapping[str, Any]], said: str) -> str:
    lines = [f"<b>E{life.expert}</b>"]
    if life.parent is None:
        lines.append("there from the start" if life.born == 0 else f"there from step {life.born} on")
    else:
        why = reason(births[life.expert, life.born])
        lines.append(f"step {life.born}: split from E{life.parent} ({escape(why)})")
    if life.died is not None:
        lines.append(f"step {life.died}: {escape(death(life.end))}")
    if said:
        lines.append(f"responds to {escape(said)}")
    return "<br>".join(lines)


def _caption(layer: int, found: Sequence[Life], alive: int, answered: bool) -> str:
    if not found:
        return "Nothing yet: the family tree appears when the run starts."
    born = sum(life.parent is not None for life in found)
    died = sum(life.died is not None for life in found)
    caption = (
        f"Experts of layer {layer}: {len(found) - born} from the start, {born} born by a split, {died} ended, {alive} "
        "alive. A lane is an expert's life; a line leads from its parent to its birth. Cross: removed after a trial; "
        "triangle: pruned; star: by hand."
    )
    told = " Words: the label's value with its highest significant lift, on the newest snapshot of the probe."
    return caption + (told if answered else "")
