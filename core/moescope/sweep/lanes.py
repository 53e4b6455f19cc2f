"""The race: loss against steps or tokens, variant by variant, with the spread over seeds; while cells run, too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal

import numpy as np

from moescope.errors import InputError
from moescope.events import Event, loss_unit
from moescope.sweep.folder import Plan, read_plan
from moescope.sweep.log import read_events
from moescope.sweep.stats import interval

Points = dict[int, float]
"""Value by step."""


@dataclass(frozen=True, kw_only=True)
class Lane:
    """One variant's curve; every tuple is as long as `x`.

    mean: over the seeds that have come that far. low, high: their 95 % t-interval, None where n < 2. least, most: their
    extremes. n: how many they are. seeds: those that have a point at all.
    """

    variant: str
    label: str
    leaky: bool
    seeds: tuple[int, ...]
    x: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]
    least: tuple[float, ...]
    most: tuple[float, ...]
    n: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Race:
    """All lanes of one curve; `note` says what a reader must know, "" if nothing."""

    curve: str
    x: Literal["step", "tokens"]
    unit: str
    lanes: tuple[Lane, ...]
    note: str


def race(folder: str | Path, curve: str = "loss", x: Literal["step", "tokens"] = "step", points: int = 200) -> Race:
    """`curve` of every variant: `loss` (of training), `eval_loss`, or `evals.NAME` (a further evaluation's loss).

    The training loss is drawn in at most `points` points, each the mean over the steps since the last one, and a seed
    counts at a point once it has done all of those. Raises `InputError` for a curve that there is not.
    """
    plan = read_plan(folder)
    if x not in ("step", "tokens") or points < 1:
        raise InputError(f"A race is run over `step` or `tokens` in at least one point, not {x!r} in {points}.")
    longest = max(cell.steps for cell in plan.cells)
    lanes = tuple(_lane(plan, variant, curve, x, -(-longest // points)) for variant in plan.config.variants)
    partial = any(number < len(plan.config.seeds) for lane in lanes for number in lane.n)
    note = "Where not all seeds have come that far, a point is the mean of those that have." if partial else ""
    return Race(curve=curve, x=x, unit=loss_unit(plan.cells[0].config), lanes=lanes, note=note)


def _lane(plan: Plan, variant: str, curve: str, x: str, width: int) -> Lane:
    cells = [cell for cell in plan.cells if cell.variant == variant]
    logs = {cell.seed: read_events(plan.run(cell)) for cell in cells}
    steps = cells[0].steps
    curves = {seed: _points(events, curve, width, steps) for seed, events in logs.items()}
    at = sorted({step for points in curves.values() for step in points})
    values = [[points[step] for points in curves.values() if step in points] for step in at]
    spread = [found for step in values if (found := interval(step)) is not None]
    return Lane(
        variant=variant,
        label=plan.config.label(variant),
        leaky=variant in plan.leaky,
        seeds=tuple(seed for seed, points in curves.items() if points),
        x=tuple(map(float, at)) if x == "step" else _tokens(logs, curves, at),
        mean=tuple(item.mean for item in spread),
        low=tuple(item.low for item in spread),
        high=tuple(item.high for item in spread),
        least=tuple(map(min, values)),
        most=tuple(map(max, values)),
        n=tuple(map(len, values)),
    )


def _points(events: Sequence[Event], curve: str, width: int, steps: int) -> Points:
    if curve == "loss":
        return _binned([event for event in events if event.kind == "train"], width, steps)
    evals = {event.step: event.payload for event in events if event.kind == "eval"}
    if curve == "eval_loss":
        found = {step: payload.get("loss") for step, payload in evals.items()}
    elif curve.startswith("evals."):
        found = {step: payload.get("evals", {}).get(curve[6:], {}).get("loss") for step, payload in evals.items()}
    else:
        raise InputError(f"There is no curve {curve!r}; there are loss, eval_loss and evals.NAME.")
    return {step: float(loss) for step, loss in found.items() if loss is not None}


def _binned(events: Sequence[Event], width: int, steps: int) -> Points:
    """Mean loss of the steps (end - width, end], by their end; only of bins that are complete."""
    done = max((event.step for event in events), default=0)
    bins: dict[int, list[float]] = {}
    for event in events:
        end = min(-(-event.step // width) * width, steps)
        if end <= done and event.payload.get("loss") is not None:
            bins.setdefault(end, []).append(event.payload["loss"])
    return {end: fmean(losses) for end, losses in bins.items()}


def _tokens(logs: dict[int, list[Event]], curves: dict[int, Points], at: Sequence[int]) -> tuple[float, ...]:
    """Positions trained on at each of the steps `at`, the mean over the seeds that have come that far."""
    known = {}
    for seed, events in logs.items():
        told = {0: 0.0} | {event.step: float(event.payload["tokens"]) for event in events if event.kind == "train"}
        known[seed] = dict(zip(at, np.interp(at, list(told), list(told.values())).tolist(), strict=True))
    return tuple(fmean(known[seed][step] for seed, points in curves.items() if step in points) for step in at)
