"""A run's auxiliary losses, as they entered the total."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import plotly.graph_objects as go

from moescope.events import Event
from moescope.figures.base import ABOVE, axis, figure
from moescope.figures.loss import current, series, thinned, thinning_note
from moescope.figures.marks import AGAIN, marked
from moescope.figures.palette import label_colours
from moescope.figures.steps import step_axis


def _coefficients(log: Sequence[Event]) -> str:
    """Effective coefficients of calibrated objectives, as a sentence."""
    said = [
        f"{name} {told['coefficient']:g} × {told['scale']:g}"
        for event in log
        if event.kind == "calibration"
        for name, told in event.payload["objectives"].items()
        if told["calibrated"]
    ]
    return f" Calibrated on the first batch: {', '.join(said)}." if said else ""


def objectives(events: Iterable[Event], *, max_points: int = 4000) -> go.Figure:
    """One curve per objective: its weighted value, summed over layers, at every step."""
    log = list(events)
    train = current(log, "train")
    names = sorted({name for event in train for name in event.payload.get("objectives", {})})
    keep = thinned(len(train), max_points)
    chosen = [train[i] for i in keep]
    data, grow = [], []
    for i, (name, shade) in enumerate(zip(names, label_colours(names), strict=True)):
        step, value = series(chosen, "objectives", name)
        data.append(
            go.Scatter(
                x=step, y=value, mode="lines", name=name, line={"width": 1.5, "color": shade}, meta={"role": "curve"},
                hovertemplate="step %{x}<br>%{y:.4g}<extra>%{fullData.name}</extra>",
            )
        )  # fmt: skip
        grow.append({"kind": "train", "trace": i, "x": "step", "y": f"objectives.{name}"})
    drawn = figure(
        data,
        name="objectives",
        title="Auxiliary losses",
        caption=(
            "Each objective times its coefficient, summed over layers, at each training step." + _coefficients(log)
            if names
            else "This run has no auxiliary losses."
            if train
            else "No training step was reported yet."
        ),
        shown=len(chosen),
        total=len(train),
        note=thinning_note(len(chosen), len(train)),
        grow=grow,
        xaxis=step_axis(log),
        yaxis=axis("weighted value"),
        legend=ABOVE,
        showlegend=True,
        again=AGAIN,
    )
    return marked(drawn, log, None)
