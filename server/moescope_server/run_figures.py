"""Figures of a run: drawn from its events, from its snapshots, or from both. And its family tree."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from fastapi import Response

from moescope.errors import InputError
from moescope.events import Event
from moescope.store import NotFoundError, RunRow, TraceRow
from moescope_server.analysis import accepted, figure_function
from moescope_server.deps import Services
from moescope_server.traces import OpenTrace
from moescope_server.wire import JSON

if TYPE_CHECKING:
    from moescope.projection import Method, Projection

_logger = logging.getLogger(__name__)

_ALWAYS = ("run_started", "run_resumed", "expansion", "acceptance", "prune", "growth_ended")
EVENT_FIGURES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "loss": (*_ALWAYS, "train", "eval"),
        "load_over_time": (*_ALWAYS, "load"),
        "objectives": (*_ALWAYS, "train", "calibration"),
        "drift": (*_ALWAYS, "drift"),
        "drift_signal": (*_ALWAYS, "drift"),
        "lineage": (*_ALWAYS, "load", "snapshot"),
    }
)
"""Figures that are drawn from a run's events, each with the kinds that it reads."""

SNAPSHOT_FIGURES: Final = ("token_flow", "tightness", "divergence")
"""Figures that are drawn from a run's snapshots; `token_map` is one too, and also a trace's."""

RUN_FIGURES: Final = (*EVENT_FIGURES, *SNAPSHOT_FIGURES)

MEASURES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {"tightness": ("silhouette", "within_between"), "divergence": ("routing_jsd", "routing_jsd_full")}
)
ANSWER_KINDS: Final = (*_ALWAYS, "load", "snapshot")


@contextmanager
def readable(run: RunRow) -> Iterator[None]:
    """A bundled run's events are a file that came from elsewhere: what cannot be drawn of it is no fault of ours."""
    try:
        yield
    except InputError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        if run.origin != "sample":
            raise
        _logger.warning("events of the sample run %s are damaged", run.id, exc_info=True)
        raise InputError(f"{run.name!r} cannot be shown: some of its events are damaged.") from None


@dataclass(frozen=True)
class Snapshot:
    """One snapshot of a run as it went on."""

    step: int
    row: TraceRow


def run_figure(all: Services, run: str, name: str, given: Mapping[str, Any], method: Method) -> Response:
    """One figure of a run as plotly JSON; 202 and the job's id while the projection it needs is computed."""
    if name in EVENT_FIGURES:
        return _of_events(all, run, name, given)
    if name in SNAPSHOT_FIGURES or name == "token_map":
        log = all.store.events_after(0, run, [*_ALWAYS, "snapshot"])
        series = snapshots(all, run, log)
        if name == "token_map":
            return _token_map(all, series, given, method)
        if name == "token_flow":
            return _token_flow(all, name, log, series, given)
        return _measured(all, name, log, series, given, _end(all.store.run(run)))
    raise NotFoundError(f"A run has no figure {name!r}; it has {', '.join((*RUN_FIGURES, 'token_map'))}.")


def snapshots(all: Services, run: str, log: Sequence[Event]) -> list[Snapshot]:
    """The run's snapshots in order of step, without what a resume did again."""
    from moescope.figures.lives import settled

    told = {event.step for event in settled(log, ("snapshot",))}
    rows = {row.step: row for row in all.store.database.all(TraceRow, run=run) if row.step is not None}
    return [Snapshot(step, row) for step, row in sorted(rows.items()) if step in told]


def _of_events(all: Services, run: str, name: str, given: Mapping[str, Any]) -> Response:
    function = figure_function(name)
    options = accepted(function, given)
    events = all.store.events_after(0, run, list(EVENT_FIGURES[name]))
    until = _end(all.store.run(run))
    key = ("run", run, events[-1].id if events else 0, name, tuple(options.items()), until)

    def draw() -> Any:
        extra: dict[str, Any] = {}
        if name == "lineage":
            from moescope.figures.lives import the_layer

            extra["answers"] = answers(all, run, events, the_layer(events, options.get("layer")))
        elif name == "drift":
            extra["until"] = until
        return function(events, **options, **extra)

    return JSON(all.analysis.figure(key, draw))


def answers(all: Services, run: str, log: Sequence[Event], layer: int) -> dict[int, str]:
    """What each living expert of a layer responded to at the newest snapshot, if it lived then."""
    from moescope.figures.lives import alive_at, lives

    series = snapshots(all, run, log)
    if not series:
        return {}
    opened = all.traces.open(series[-1].row)
    found = [life for life in lives(log, layer) if life.died is None]
    then = alive_at(found, series[-1].step)
    told = all.analysis.answers(opened).get(layer, {})
    return {expert: words for expert, words in told.items() if expert in then}


def _token_flow(
    all: Services, name: str, log: Sequence[Event], series: Sequence[Snapshot], given: Mapping[str, Any]
) -> Response:
    if len(series) < 2:
        raise NotFoundError("Tokens can be followed once the run has two snapshots.")
    later = _at(series, given.get("step"))
    place = series.index(later)
    earlier = _at(series, given["before"]) if given.get("before") is not None else series[max(place - 1, 0)]
    if earlier.step >= later.step:
        raise InputError(f"The earlier snapshot must come before step {later.step}; step {earlier.step} does not.")
    before, after = all.traces.open(earlier.row), all.traces.open(later.row)
    layer = after.layer(given.get("layer"))
    options = accepted(figure_function(name), _other(given, "step", "before", "layer"))
    key = ("run", name, before.stamp, after.stamp, layer, log[-1].id)
    steps = (earlier.step, later.step)
    draw = figure_function(name)
    return JSON(
        all.analysis.figure(key, lambda: draw(before.trace, after.trace, layer, events=log, steps=steps, **options))
    )


def _measured(
    all: Services, name: str, log: Sequence[Event], series: Sequence[Snapshot], given: Mapping[str, Any], until: int
) -> Response:
    """Tightness or divergence: every snapshot is measured once, then kept."""
    opened = [all.traces.open(item.row) for item in series]
    layer = opened[-1].layer(given.get("layer")) if opened else given.get("layer") or 0
    options = accepted(figure_function(name), _other(given, "layer"))
    stamps, last = tuple(item.stamp for item in opened), log[-1].id if log else 0
    key = ("run", name, stamps, layer, tuple(options.items()), last, until)

    def draw() -> Any:
        points = [
            (item.step, all.analysis.point(trace, layer, MEASURES[name]))
            for item, trace in zip(series, opened, strict=True)
        ]
        return figure_function(name)(points, layer, events=log, until=until, **options)

    return JSON(all.analysis.figure(key, draw))


def _end(run: RunRow) -> int:
    """Last step that the page of a run shows: while it goes on that grows by halves."""
    if run.orphan or run.status in ("finished", "stopped", "failed"):
        return max(1, run.step)
    shown = (math.ceil(run.steps * share) for share in (1 / 8, 1 / 4, 1 / 2, 1))
    return next((step for step in shown if step >= run.step), max(1, run.steps))


def _token_map(all: Services, series: Sequence[Snapshot], given: Mapping[str, Any], method: Method) -> Response:
    """The map at one snapshot, as one of a series that started each from the one before, on axes that all share."""
    if not series:
        raise NotFoundError("The token map appears with the run's first snapshot.")
    now = _at(series, given.get("step"))
    opened = [all.traces.open(item.row) for item in series]
    layer = opened[-1].layer(given.get("layer"))
    function = figure_function("token_map")
    options = accepted(function, {"color": given.get("color"), "max_points": given.get("max_points")})
    accepted(function, _other(given, "step", "layer"))
    placed = project_series(all, opened, layer, method)
    if placed is None:
        spec = {"series": [item.row.id for item in series], "layer": layer, "method": method}
        return JSON({"job": all.jobs.submit_once("project", spec).id}, 202)
    place = series.index(now)
    ranges = _ranges(placed)
    key = ("run", "token_map", opened[place].stamp, layer, method, placed[place].key, ranges, tuple(options.items()))
    trace = opened[place].trace
    return JSON(
        all.analysis.figure(
            key, lambda: function(trace, layer, projection=placed[place], ranges=ranges, again=("snapshot",), **options)
        )
    )


def project_series(all: Services, opened: Sequence[OpenTrace], layer: int, method: Method) -> list[Projection] | None:
    """Maps of a run's snapshots, each started from the one before; None where that takes longer than a request may."""
    made: list[Projection] = []
    for item in opened:
        one = all.analysis.projected(item, layer, method, after=made[-1] if made else None)
        if one is None:
            return None
        made.append(one)
    return made


def _ranges(placed: Sequence[Projection]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Of x and y, over all maps of the series, with a margin."""
    low = [min(float(item.xy[:, axis].min()) for item in placed) for axis in (0, 1)]
    high = [max(float(item.xy[:, axis].max()) for item in placed) for axis in (0, 1)]
    room = [0.04 * (b - a) or 1.0 for a, b in zip(low, high, strict=True)]
    return (low[0] - room[0], high[0] + room[0]), (low[1] - room[1], high[1] + room[1])


def _at(series: Sequence[Snapshot], step: int | None) -> Snapshot:
    """The snapshot at a step, the newest if None. Raises `NotFoundError`."""
    found = series[-1] if step is None else next((item for item in series if item.step == step), None)
    if found is None:
        known = ", ".join(str(item.step) for item in series)
        raise NotFoundError(f"The run has no snapshot at step {step}; it has some at {known}.")
    return found


def _other(given: Mapping[str, Any], *used: str) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name not in used}


def growth(all: Services, run: str, layer: int | None) -> dict[str, Any]:
    """Who lives, who came from whom, and what changed: all layers, or one."""
    from moescope.figures.lives import CHANGES, lives, moe_layers, settled, the_layer

    log = all.store.events_after(0, run, list(ANSWER_KINDS))
    known = moe_layers(log)
    wanted = known if layer is None else [the_layer(log, layer)]
    found = {item: lives(log, item) for item in wanted}
    told = {item: answers(all, run, log, item) for item in wanted}
    tree = [
        {
            "layer": item, "expert": life.expert, "parent": life.parent, "born": life.born, "died": life.died,
            "why": life.why, "end": life.end or None,
            "answers": told[item].get(life.expert) if life.died is None else None,
        }
        for item in wanted
        for life in found[item]
    ]  # fmt: skip
    return {
        "layers": known,
        "slots": _slots(log),
        "alive": {item: sorted(life.expert for life in found[item] if life.died is None) for item in wanted},
        "tree": tree,
        "changes": [event for event in settled(log, CHANGES) if layer in (None, event.payload.get("layer", layer))],
    }


def _slots(log: Sequence[Event]) -> int | None:
    """Expert slots of every layer: as many as may ever live."""
    for event in log:
        if event.kind == "run_started":
            model = event.payload.get("config", {}).get("model", {})
            slots = model.get("max_experts") or model.get("num_experts")
            return None if slots is None else int(slots)
    return None
