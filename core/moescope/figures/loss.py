"""A run's loss: every step, smoothed, and on held-out data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from moescope.events import Event, loss_unit
from moescope.figures.base import ABOVE, axis, figure
from moescope.figures.marks import AGAIN, marked
from moescope.figures.palette import CATEGORICAL, NEUTRAL
from moescope.figures.steps import first_step, step_axis
from moescope.figures.wording import escape, number

SMOOTHING = 0.9


def current(events: Iterable[Event], kind: str) -> list[Event]:
    """Events of one kind in order of step, without what a resume did again: going on from step s forgets later ones."""
    kept: dict[int, Event] = {}
    for event in events:
        if event.kind == "run_resumed":
            start = int(event.payload.get("from_step", event.step))
            kept = {step: old for step, old in kept.items() if step <= start}
        elif event.kind == kind:
            kept[event.step] = event
    return [kept[step] for step in sorted(kept)]


def series(events: Sequence[Event], *path: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps int32, values float64) of one number in the payloads; events that lack it are left out."""
    steps, values = [], []
    for event in events:
        value: Any = event.payload
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, (int, float)):
            steps.append(event.step)
            values.append(float(value))
    return np.array(steps, np.int32), np.array(values, np.float64)


def smooth(values: np.ndarray, keep: float = SMOOTHING, steps: np.ndarray | None = None) -> np.ndarray:
    """s_t = k s_{t-1} + (1 - k) v_t from s_0 = v_0, k = keep to the power of the steps since the value before.

    Without `steps` that is one. A value that is not finite leaves s as it was.
    """
    out, state = np.empty_like(values), np.nan
    kept = keep ** np.diff(np.arange(len(values)) if steps is None else steps, prepend=0)
    for i, value in enumerate(values):
        if np.isfinite(value):
            state = value if np.isnan(state) else kept[i] * state + (1 - kept[i]) * value
        out[i] = state
    return out


def thinned(count: int, most: int) -> np.ndarray:
    """Positions of at most `most` of `count` points, evenly spaced, the first and the last among them."""
    return np.arange(count) if count <= most else np.unique(np.linspace(0, count - 1, most).round().astype(int))


def thinning_note(shown: int, total: int) -> str | None:
    return f"{number(shown)} of {number(total)} steps, evenly spaced" if shown < total else None


def _further(log: Sequence[Event]) -> list[str]:
    """Names of further evaluations, in the order of the run's configuration."""
    names: dict[str, None] = {}
    for event in log:
        if event.kind == "run_started":
            names |= dict.fromkeys(event.payload.get("config", {}).get("evals", {}))
        elif event.kind == "eval":
            names |= dict.fromkeys(event.payload.get("evals", {}))
    return list(names)


def _floor(log: Sequence[Event]) -> tuple[float, float] | None:
    """The least possible loss and its standard error, in the loss's unit, where the data knows it."""
    for event in log:
        floor = event.payload.get("data", {}).get("floor") if event.kind == "run_started" else None
        if floor:
            least = floor["nats"] if "nats" in floor else floor["squared_error"]
            return float(least), float(floor["std_error"])
    return None


def unit_of(log: Iterable[Event]) -> str:
    """The unit of a run's loss: nats, or squared error where the model predicts values."""
    started = (event.payload for event in log if event.kind == "run_started")
    return loss_unit(next(started, {}).get("config", {}))


_MEANING = {
    "nats": "Cross-entropy in nats per token (per image where the model classifies), without auxiliary losses.",
    "squared error": "Mean squared error of the predicted values, without auxiliary losses.",
}


def _of_further(log: Sequence[Event], names: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
    """Name and path in the payload of each further curve.

    Of text, what compares: the same documents as they are, and the kept words of each corrupted version.
    """
    started = next((event.payload for event in log if event.kind == "run_started"), {})
    if not names or started.get("config", {}).get("model", {}).get("head") in ("class", "values"):
        return [(f"held out, {name}", ("evals", name, "loss")) for name in names]
    clean = ("same documents, clean", ("evals", names[0], "clean"))
    return [clean, *((f"same documents, {name}, words kept", ("evals", name, "kept")) for name in names)]


def leaky(log: Iterable[Event]) -> str:
    """A sentence for the caption of a next-token run whose router sees later tokens, else nothing."""
    for event in log:
        if event.kind == "run_started":
            layers, model = event.payload.get("layers", []), event.payload.get("config", {}).get("model", {})
            if model.get("head") == "next_token" and any(not layer.get("causal", True) for layer in layers):
                return "Leaky control: the router sees later tokens, so this is no language model's loss. "
    return ""


def _evaluated(held: Sequence[Event], name: str, path: tuple[str, ...], index: int, unit: str) -> go.Scatter:
    step, value = series(held, *path)
    return go.Scatter(
        x=step, y=value, mode="lines+markers", name=escape(name),
        line={"width": 2, "color": CATEGORICAL[1 + index % 6], "dash": "dash"}, marker={"size": 6},
        hovertemplate=f"step %{{x}}<br>%{{y:.4f}} {unit}<extra>%{{fullData.name}}</extra>", meta={"role": "curve"},
    )  # fmt: skip


def _in_range(step: int, value: float) -> go.Scatter:
    """A point that is not drawn: the axis makes room for it, as it would not for a line across the plot."""
    return go.Scatter(
        x=[step], y=[value], mode="markers", marker={"opacity": 0}, showlegend=False, hoverinfo="skip",
        meta={"role": "blank"},
    )  # fmt: skip


def _line_at(value: float) -> dict[str, Any]:
    line = {"color": NEUTRAL, "width": 1.5, "dash": "dot"}
    return {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": value, "y1": value, "line": line}


def loss(events: Iterable[Event], *, max_points: int = 4000) -> go.Figure:
    """Training loss per step (faint), its running mean (which a live page continues), and loss on held-out data.

    Further evaluations have a curve each. A line stands at the least possible loss, where the data knows it.
    """
    log = list(events)
    further, floor, unit = _of_further(log, _further(log)), _floor(log), unit_of(log)
    # Falls by decades: what a split gains is seen on a logarithmic axis only.
    decades = unit == "squared error" and (floor is None or floor[0] > 0)
    train, held = current(log, "train"), current(log, "eval")
    step, value = series(train, "loss")
    eval_step, eval_value = series(held, "loss")
    keep = thinned(len(step), max_points)
    hover = f"step %{{x}}<br>%{{y:.4f}} {unit}<extra>%{{fullData.name}}</extra>"
    curve = {"role": "curve"}
    raw = go.Scatter(
        x=step[keep], y=value[keep], mode="lines", name="train, each step", line={"width": 1, "color": NEUTRAL},
        opacity=0.45, hovertemplate=hover, meta=curve,
    )  # fmt: skip
    mean = go.Scatter(
        x=step[keep], y=smooth(value, steps=step)[keep], mode="lines", name="train, running mean",
        line={"width": 2, "color": CATEGORICAL[7]}, hovertemplate=hover, meta=curve,
    )  # fmt: skip
    evaluated = go.Scatter(
        x=eval_step, y=eval_value, mode="lines+markers", name="held out", line={"width": 2, "color": CATEGORICAL[11]},
        marker={"size": 6}, hovertemplate=hover, meta=curve,
    )  # fmt: skip
    shown = len(keep)
    drawn = figure(
        [
            raw,
            mean,
            evaluated,
            *(_evaluated(held, name, path, i, unit) for i, (name, path) in enumerate(further)),
            *([_in_range(first_step(log), floor[0])] if floor else []),
        ],
        name="loss",
        title="Loss",
        caption=leaky(log)
        + (
            f"{_MEANING[unit]} Faint: each training step; the running mean keeps {SMOOTHING:g} of itself a step; "
            "dots: held-out data, where it is evaluated."
            + (" The axis is logarithmic." if decades else "")
            + (
                f" Dotted line: the least loss that is possible, {floor[0]:.3f} ± {floor[1]:.3f} {unit}."
                if floor
                else ""
            )
        ),
        shown=shown,
        total=len(step),
        note=thinning_note(shown, len(step)),
        grow=[
            {"kind": "train", "trace": 0, "x": "step", "y": "loss"},
            {"kind": "train", "trace": 1, "x": "step", "y": "loss", "smooth": SMOOTHING},
            {"kind": "eval", "trace": 2, "x": "step", "y": "loss"},
            *(
                {"kind": "eval", "trace": 3 + i, "x": "step", "y": ".".join(path)}
                for i, (_, path) in enumerate(further)
            ),
        ],
        shapes=[_line_at(floor[0])] if floor else [],
        xaxis=step_axis(log),
        yaxis=axis(f"loss ({unit})", **({"type": "log", "nticks": 3} if decades else {})),
        legend=ABOVE,
        hovermode="x unified",
        again=AGAIN,
    )
    return marked(drawn, log, None)
