"""Marks of what happened to the experts, on every figure over steps: a shape and a colour each, words on hover."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import plotly.graph_objects as go

from moescope.events import Event
from moescope.figures.base import ABOVE
from moescope.figures.lives import CHANGES, settled
from moescope.figures.palette import CATEGORICAL, NEUTRAL
from moescope.figures.steps import first_step
from moescope.figures.wording import escape

AGAIN: Final = CHANGES
"""Kinds of events after which a live page asks for a marked figure again."""

STRIP: Final = 0.09
"""Share of the height that the marks take, above the panels."""

_AXIS: Final = 99

STYLES: Final[Mapping[str, tuple[str, str, bool]]] = MappingProxyType(
    {
        "split": ("triangle-up", CATEGORICAL[11], True),
        "stays": ("circle", CATEGORICAL[15], False),
        "removed": ("x", CATEGORICAL[0], False),
        "pruned": ("triangle-down", CATEGORICAL[3], False),
        "by hand": ("star", CATEGORICAL[1], True),
        "growth ends": ("square-open", NEUTRAL, True),
        "data arrive": ("diamond", CATEGORICAL[7], True),
    }
)
"""Shape, colour and row (whether the upper one) of every kind of mark, in the order of the legend."""

_DETECTED: Final = {"conflict": "its tokens pulled it two ways"}
_WHY: Final = {
    "drift": "its gradient drifted",
    "coverage": "tokens were reached by no expert",
    "random": "picked at random",
    "by hand": "split by hand",
} | _DETECTED
_DEATHS: Final = {
    "end of growth": "was pruned at the end of growth: the held-out loss hardly changes without it",
    "never reached": "was pruned: no token reached it",
    "by hand": "was retired by hand",
}
_GROWN: Final = {
    "phase over": "its phase is over",
    "patience": "too many trials in a row brought no gain",
    "full": "every slot is taken",
}

LINES: Final = ("split", "pruned", "by hand", "data arrive")
"""Marks from which a line goes down; verdicts would double them."""


@dataclass(frozen=True)
class Mark:
    """One thing that happened at one step."""

    style: str
    step: int
    words: str
    event: int


def marks_of(log: Sequence[Event], layer: int | None) -> list[Mark]:
    """The marks of one layer (None: all, named) in order of step, without what a resume did again."""
    made = list(_arrivals(log))
    for event in settled(log, CHANGES):
        mine = layer is None or event.kind == "growth_ended" or event.payload.get("layer") == layer
        if mine:
            where = "" if layer is not None or event.kind == "growth_ended" else f"layer {event.payload['layer']}, "
            style, words = _told(event, layer)
            made.append(Mark(style, event.step, f"{where}step {event.step}: {words}", event.id))
    return sorted(made, key=lambda mark: (mark.step, mark.event))


def _arrivals(log: Sequence[Event]) -> Iterator[Mark]:
    start = first_step(log)
    for event in log:
        if event.kind == "run_started":
            arrivals = event.payload.get("data", {}).get("arrivals") or ()
            for told in (each for each in arrivals if int(each["step"]) >= start):
                words = f"step {told['step']}: {told['value']} arrives in the training data"
                yield Mark("data arrive", int(told["step"]), words, event.id)


def _told(event: Event, layer: int | None) -> tuple[str, str]:
    told = event.payload
    by_hand = told.get("why") == "by hand"
    if event.kind == "expansion":
        words = f"E{told['child']} split from E{told['parent']} ({reason(told)})"
        return ("by hand" if by_hand else "split"), words
    if event.kind == "acceptance":
        verb = "stays" if told["kept"] else "is removed"
        return ("stays" if told["kept"] else "removed"), f"E{told['child']} {verb}: {told.get('why', '')}"
    if event.kind == "prune":
        return ("by hand" if by_hand else "pruned"), f"E{told['expert']} {death(str(told.get('why', '')))}"
    alive = [f"L{item['layer']}: {item['alive']}" for item in told.get("layers", ()) if layer in (None, item["layer"])]
    return (
        "growth ends",
        f"growth ends ({_GROWN.get(told.get('why', ''), told.get('why', ''))}); experts alive: {', '.join(alive)}",
    )


def reason(told: Mapping[str, Any]) -> str:
    """Why an expansion was, in words, and the signals that a test reads."""
    shown = {"p_value": "p"}
    signals = [
        f"{shown.get(name, name)} = {value:.2g}"
        for name, value in (told.get("signals") or {}).items()
        if isinstance(value, (int, float)) and name not in ("grad_norm", "z")
    ]
    why = str(told.get("why") or "")
    if why == "drift" and told.get("detector") in _DETECTED:
        why = str(told["detector"])
    words = _WHY.get(why, why) or "no reason given"
    return f"{words}: {', '.join(signals)}" if signals and told.get("why") == "drift" else words


def death(why: str) -> str:
    """What became of an expert, in words that follow its name."""
    return _DEATHS.get(why, why) or "dies"


def marked(drawn: go.Figure, log: Sequence[Event], layer: int | None) -> go.Figure:
    """The figure with a strip of marks above its panels and a faint line down from each; its traces come first."""
    found = marks_of(log, layer)
    if not found:
        return drawn
    for name in drawn.layout:
        if name.startswith("yaxis"):
            low, high = drawn.layout[name].domain or (0.0, 1.0)
            drawn.layout[name].domain = (low * (1 - STRIP), high * (1 - STRIP))
    above = drawn.layout.legend.y == ABOVE["y"]
    for style in STYLES:
        points = _together([mark for mark in found if mark.style == style])
        if points:
            drawn.add_trace(_scatter(style, points).update(legend=None if above else "legend2"))
    strip = {"domain": [1 - STRIP, 1], "range": [0, 1], "visible": False, "fixedrange": True, "anchor": "x"}
    drawn.update_layout({f"yaxis{_AXIS}": strip, "showlegend": True})
    if not above:
        drawn.layout.legend2 = ABOVE
    down = sorted({(mark.step, mark.style) for mark in found if mark.style in LINES})
    drawn.layout.shapes = (*drawn.layout.shapes, *(_line(step, style) for step, style in down))
    return drawn


def _together(found: Sequence[Mark]) -> dict[int, list[Mark]]:
    """Marks by step: those of one step are one point."""
    made: dict[int, list[Mark]] = {}
    for mark in found:
        made.setdefault(mark.step, []).append(mark)
    return made


def _scatter(style: str, points: Mapping[int, Sequence[Mark]]) -> go.Scatter:
    symbol, colour, upper = STYLES[style]
    return go.Scatter(
        x=list(points), y=[0.78 if upper else 0.25] * len(points), yaxis=f"y{_AXIS}", mode="markers", name=style,
        cliponaxis=False,
        marker={"symbol": symbol, "size": 9, "color": colour, "line": {"width": 0 if symbol != "square-open" else 1.5}},
        customdata=[[mark.event for mark in marks] for marks in points.values()],
        text=["<br>".join(_wrapped(mark.words) for mark in marks) for marks in points.values()],
        hovertemplate="%{text}<extra></extra>", legendrank=2000, meta={"role": "marks"},
    )  # fmt: skip


def _wrapped(words: str, width: int = 60) -> str:
    """Escaped, in lines of about so many letters: a hover label does not break them itself."""
    lines, now = [], ""
    for word in words.split(" "):
        if now and len(now) + 1 + len(word) > width:
            lines.append(now)
            now = word
        else:
            now = f"{now} {word}".strip()
    return "<br>".join(escape(line) for line in (*lines, now))


def _line(step: int, style: str) -> dict[str, Any]:
    line = {"color": STYLES[style][1], "width": 1, "dash": "dot"}
    return {
        "type": "line", "xref": "x", "yref": "paper", "x0": step, "x1": step, "y0": 0, "y1": 1 - STRIP, "line": line,
        "opacity": 0.4, "layer": "above",
    }  # fmt: skip
