"""How near every expert is to a split: the detector's signals against their thresholds, experts x steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go

from moescope.errors import InputError
from moescope.events import Event
from moescope.figures.base import ABOVE, category_axis, expert_names, figure
from moescope.figures.lives import family_order, last_step, lives, of_layer, settled, the_layer
from moescope.figures.marks import AGAIN, marked
from moescope.figures.steps import first_step, step_axis
from moescope.figures.wording import escape, number

INK, PAPER = "#111318", "#ffffff"
"""Marks on cells that are orange in every theme."""

LIMIT: Final = 1.0
"""Powers of ten from the threshold at which the colour ends."""

FEW: Final = 8
"""Experts up to which a mark has room in its cell; of more, marks are smaller."""

LOOKS: Final = {"conflict": "It looks once the training loss has flattened."}
"""When a detector looks, where that is not from the start."""

LEAST_WIDTH: Final = 0.015
"""Share of the axis that a cell past its threshold takes at least."""

NEARING: Final = (
    (0.0, "rgba(133,139,148,0.10)"), (0.25, "rgba(86,134,196,0.30)"), (0.5, "rgba(46,112,214,0.85)"),
    (0.5, "rgba(235,150,40,0.85)"), (1.0, "rgba(206,84,0,1)"),
)  # fmt: skip
"""Grey far from the threshold, blue below it, and a jump to orange where it is passed."""


def drift(
    events: Iterable[Event],
    layer: int | None = None,
    *,
    signal: str | None = None,
    max_points: int = 300,
    until: int | None = None,
) -> go.Figure:
    """Every evaluation of the growth detector in one layer: experts x steps, coloured by the distance to firing.

    signal:     one that has a threshold; None: all of them, each expert by the one that is furthest from firing.
    max_points: more evaluations than this are drawn in bins, each by its nearest to firing; marks of what fired are
                never left out.
    until:      step that the axis reaches at least; None: the last one of the events.

    Raises `InputError` for a layer that the run does not have, or a signal without a threshold.
    """
    log = list(events)
    layer = the_layer(log, layer)
    asked = evaluations(log, layer)
    known = thresholds(asked)
    if signal is not None and signal not in known:
        raise InputError(f"No detector of this run has a threshold on {signal!r}; it has {', '.join(known) or 'none'}.")
    wanted = [signal] if signal is not None else list(known)
    order = [expert for expert in family_order(lives(log, layer)) if _asked_of(asked, expert)]
    order += sorted({expert for _, told in asked for expert in told["experts"]} - set(order))
    step_S = np.array([step for step, _ in asked], np.int32)
    near_ES = np.array([[distance(told, expert, wanted) for _, told in asked] for expert in order], np.float64)
    near_ES = near_ES.reshape(len(order), len(asked))
    shown, near_EB, place_EB = _binned(step_S, near_ES, max_points)
    words_EB = [
        [_cell(asked, expert, place) for place in row] for expert, row in zip(order, place_EB.tolist(), strict=True)
    ]
    names = expert_names(order)
    end = last_step(log) if until is None else until
    width = LEAST_WIDTH * max(1, end - first_step(log))
    heat = go.Heatmap(
        x=shown, y=names, z=np.clip(near_EB, -LIMIT, LIMIT), customdata=words_EB, zmin=-LIMIT, zmax=LIMIT,
        colorscale=NEARING, colorbar=_colorbar(), hoverongaps=False, meta={"role": "step_cells", "y": "expert"},
        hovertemplate="<b>%{y}</b>, %{customdata}<extra></extra>",
    )  # fmt: skip
    drawn = figure(
        [heat, *_widened(shown, near_EB, names, width), *_fired(asked, len(order))],
        name="drift",
        layer=layer,
        title=f"Drift, layer {layer}",
        caption=_caption(layer, asked, known, signal, detector_of(log)) if asked else unseen(log, layer),
        shown=len(shown),
        total=len(asked),
        note=f"{number(len(asked))} evaluations in {number(len(shown))} columns, each by its nearest to firing"
        if len(shown) < len(asked)
        else None,
        again=("drift", *AGAIN),
        options={"signal": list(known)},
        xaxis=step_axis(log, end),
        yaxis=category_axis("expert", names, autorange="reversed"),
        legend=ABOVE,
    )
    return marked(drawn, log, layer)


def _widened(step_B: np.ndarray, near_EB: np.ndarray, names: Sequence[str], width: float) -> list[go.Heatmap]:
    """Cells past the threshold once more, `width` steps wide: two evaluations may lie closer than the eye parts."""
    hot_EB = np.nan_to_num(near_EB, nan=-1.0) >= 0
    step_F = step_B[hot_EB.any(axis=0)]
    if not step_F.size:
        return []
    edge = np.unique(np.concatenate([step_F - width / 2, step_F + width / 2]))
    inside_BC = np.abs(step_B[:, None] - (edge[:-1] + edge[1:]) / 2) < width / 2
    best_EC = np.stack(
        [
            np.where(hot_B[:, None] & inside_BC, near_B[:, None], -np.inf).max(axis=0)
            for hot_B, near_B in zip(hot_EB, near_EB, strict=True)
        ]
    )
    return [
        go.Heatmap(
            x=edge, y=names, z=np.where(best_EC >= 0, np.minimum(best_EC, LIMIT), np.nan), zmin=-LIMIT, zmax=LIMIT,
            colorscale=NEARING, showscale=False, hoverinfo="skip", hoverongaps=False, meta={"role": "blank"},
        )
    ]  # fmt: skip


def detector_of(log: Sequence[Event]) -> str | None:
    """What watches the run: "" if nothing does, None if the run has not said."""
    for event in log:
        if event.kind == "drift":
            return str(event.payload.get("detector") or "")
        if event.kind == "run_started" and "config" in event.payload:
            return str((event.payload["config"].get("expansion") or {}).get("detector") or "")
    return None


def unseen(log: Sequence[Event], layer: int) -> str:
    """What stands where the detector has not looked at a layer."""
    detector = detector_of(log)
    if detector in ("", "never"):
        return "No detector watches this run: its experts change by hand only."
    if detector is None:
        return "Nothing yet: each expert's distance to a split appears with the detector's first look."
    return f"Nothing yet: the detector has not looked at layer {layer}. {LOOKS.get(detector, '')}".rstrip()


def evaluations(log: Sequence[Event], layer: int) -> list[tuple[int, dict[str, Any]]]:
    """(step, what the detector said of this layer) of every evaluation, in order."""
    found = [(event.step, of_layer(event, layer)) for event in settled(log, ("drift",))]
    return [(step, told) for step, told in found if told is not None]


def thresholds(asked: Sequence[tuple[int, Mapping[str, Any]]]) -> dict[str, Mapping[str, Any]]:
    """The newest threshold of every signal that has one."""
    known: dict[str, Mapping[str, Any]] = {}
    for _, told in asked:
        known |= {name: at for name, at in told["thresholds"].items() if at.get("at") is not None}
    return known


def value_of(told: Mapping[str, Any], expert: int, signal: str) -> float | None:
    """One expert's signal at one evaluation; None where it is not defined."""
    values = told["signals"].get(signal)
    if values is None or expert not in told["experts"]:
        return None
    value = values[told["experts"].index(expert)]
    return None if value is None else float(value)


def distance(told: Mapping[str, Any], expert: int, signals: Sequence[str]) -> float:
    """Powers of ten by which an expert's signals are past their thresholds (negative: short of); the least of them.

    Where a threshold or a signal is not positive there is no ratio: then it is their difference, in units of the
    threshold. NaN where one of them is not defined.
    """
    found = []
    for signal in signals:
        value, at = value_of(told, expert, signal), told["thresholds"].get(signal, {})
        if at.get("at") is None:
            continue
        if value is None:
            return float("nan")
        limit = float(at["at"])
        ratio = limit > 0 and value > 0
        past = float(np.log10(value / limit)) if ratio else (value - limit) / (abs(limit) or 1.0)
        found.append(-past if at["fires"] == "below" else past)
    return min(found, default=float("nan"))


def _asked_of(asked: Sequence[tuple[int, Mapping[str, Any]]], expert: int) -> bool:
    return any(expert in told["experts"] for _, told in asked)


def _words(told: Mapping[str, Any], expert: int) -> str:
    """What a mark's hover says: every signal, those with a threshold beside it."""
    if expert not in told["experts"]:
        return ""
    lines = []
    for name in told["signals"]:
        value, at = value_of(told, expert, name), told["thresholds"].get(name)
        line = f"{escape(name)} {'not yet defined' if value is None else f'{value:.3g}'}"
        lines.append(line + (f" (fires {at['fires']} {at['at']:.3g})" if at else ""))
    fired = bool(told["fired"][told["experts"].index(expert)])
    if told.get("chosen") == expert:
        lines.append("<b>fired: it is duplicated now</b>")
    elif fired:
        lines.append("<b>fired</b>" + (f": {escape(str(told['note']))}" if told.get("note") else ""))
    return "<br>".join(lines)


def _cell(asked: Sequence[tuple[int, Mapping[str, Any]]], expert: int, place: int) -> str:
    """What a cell's hover says: the step, and the signals that have thresholds. Short, for there are thousands."""
    step, told = asked[place]
    if expert not in told["experts"]:
        return ""
    values = [(name, value_of(told, expert, name)) for name in told["thresholds"]]
    said = [f"{escape(name)} {'not yet defined' if value is None else f'{value:.2g}'}" for name, value in values]
    return "<br>".join((f"step {step}", *said))


def _binned(step_S: np.ndarray, near_ES: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """At most `most` columns of consecutive evaluations: their steps, and each expert's nearest to firing.

    Returns (steps int32 [B], nearest float64 [E, B], which evaluation that was int64 [E, B], the column's first where
    none is defined).
    """
    count = len(step_S)
    edge = np.unique(np.linspace(0, count, min(count, most) + 1).astype(int))
    near_EB = np.full((len(near_ES), len(edge) - 1), np.nan)
    place_EB = np.zeros(near_EB.shape, np.int64)
    for column, (first, last) in enumerate(pairwise(edge)):
        part = np.where(np.isnan(near_ES[:, first:last]), -np.inf, near_ES[:, first:last])
        best_E = part.argmax(axis=1)
        place_EB[:, column] = first + best_E
        near_EB[:, column] = np.take_along_axis(near_ES[:, first:last], best_E[:, None], 1)[:, 0]
    middle = np.array([step_S[(a + b - 1) // 2] for a, b in pairwise(edge)], np.int32)
    return middle, near_EB, place_EB


def _fired(asked: Sequence[tuple[int, Mapping[str, Any]]], lanes: int) -> list[go.Scatter]:
    """Marks of every evaluation at which an expert fired: hollow where that was all, full where it was duplicated."""
    groups: dict[bool, list[tuple[int, int, str]]] = {False: [], True: []}
    for step, told in asked:
        for expert, fired in zip(told["experts"], told["fired"], strict=True):
            if fired:
                groups[told.get("chosen") == expert].append((step, int(expert), _words(told, expert)))
    made = []
    for chosen, points in groups.items():
        if points:
            symbol, size = (
                ("triangle-up", 8 if lanes <= FEW else 5) if chosen else ("diamond", 5 if lanes <= FEW else 4)
            )
            made.append(
                go.Scatter(
                    x=[step for step, _, _ in points], y=expert_names(expert for _, expert, _ in points),
                    text=[f"step {step}<br>{words}" for step, _, words in points], mode="markers",
                    name="fired, duplicated" if chosen else "fired", meta={"role": "blank"},
                    marker={"symbol": symbol, "size": size, "color": INK, "line": {"width": 1, "color": PAPER}},
                    hovertemplate="<b>%{y}</b>, %{text}<extra></extra>",
                )
            )  # fmt: skip
    return made


def _colorbar() -> dict[str, Any]:
    return {
        "title": {"text": "from its threshold", "side": "right"}, "tickvals": [-1, -0.5, 0, 0.5, 1],
        "ticktext": ["≥ 10× short", "3× short", "fires", "3× past", "≥ 10× past"], "thickness": 10, "ticks": "",
        "outlinewidth": 0, "len": 1.0, "xpad": 4, "ypad": 0,
    }  # fmt: skip


def _caption(
    layer: int,
    asked: Sequence[tuple[int, Mapping[str, Any]]],
    known: Mapping[str, Mapping[str, Any]],
    signal: str | None,
    detector: str | None,
) -> str:
    tests = [f"{name} {at['fires']} {at['at']:.3g}" for name, at in known.items() if signal in (None, name)]
    what = "the signal that is furthest from firing" if signal is None and len(tests) > 1 else "the signal"
    undefined = all(
        value_of(told, expert, name) is None for _, told in asked for expert in told["experts"] for name in known
    )
    waits = LOOKS.get(detector or "", "") if undefined else ""
    return (
        f"Each evaluation of the detector in layer {layer}: {what}, in ratio to its threshold. Fires: "
        f"{' and '.join(tests) or 'by chance, without a threshold'}. Blank: the expert is not alive, or the signal is "
        f"not yet defined. {waits}"
    ).rstrip()
