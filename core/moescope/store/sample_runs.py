"""The bundled runs: finished runs as files, with their events and a few snapshots, and how one is made of a run.

`NAME/card.json` (title, description, preset, created), `config.json`, `events.jsonl` and
`snapshots/step-000100.safetensors`; no weights. They are read where they are: nothing of them is copied into the home,
and their events join no one's log.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from moescope.errors import InputError
from moescope.events import Event
from moescope.files import staged
from moescope.store.describe import describe_trace, modified, read_card, stamp
from moescope.store.ids import slug
from moescope.store.rows import CheckpointRow, RunRow, TraceRow

log = logging.getLogger(__name__)

SampleRow = CheckpointRow | TraceRow | RunRow
Known = Mapping[tuple[type[SampleRow], str], SampleRow]
"""Rows by kind and id: a sample and its trace have the same id."""

_EVENTS: Final = "events.jsonl"
_STEP = re.compile(r"step-(\d{1,12})")
_LEFT_OUT: Final = frozenset({"checkpoint", "job", "run_resumed", "run_stopped", "run_failed"})
_THINNED: Final = frozenset({"train", "load", "drift"})
_DIGITS: Final = 6
_MOST: Final = 2**53
"""Steps beyond this fit neither JSON nor the database."""


def scan_runs(folder: Path, known: Known) -> Iterator[RunRow | TraceRow]:
    """A row for every bundled run and then for its snapshots; what is damaged is left out, and the rest is there."""
    places = sorted(folder.iterdir()) if folder.is_dir() else []
    for place in (path for path in places if (path / "config.json").is_file()):
        run = _run(place, known)
        if run is None:
            continue
        yield run
        for file in sorted((place / "snapshots").glob("*.safetensors")):
            try:
                trace = _snapshot(file, run, known)
            except (InputError, OSError) as error:
                log.warning("the sample trace %s cannot be read: %s", file, error)
                continue
            if trace is not None:
                yield trace


def _run(place: Path, known: Known) -> RunRow | None:
    id = f"sample-{slug(place.name)}"
    try:
        mark = stamp(place)
        old = known.get((RunRow, id))
        if isinstance(old, RunRow) and old.stamp == mark and old.path == str(place):
            return old
        card, config, events = read_card(place / "card.json"), read_card(place / "config.json"), read_events(place, id)
        created = str(card.get("created") or modified(place / "config.json"))
    except OSError as error:
        log.warning("the sample run %s cannot be read: %s", place, error)
        return None
    if not config or not events:
        log.warning("the sample run %s has no configuration or no events that can be read", place)
        return None
    last = max(event.step for event in events)
    optim = config.get("optim")
    steps = optim.get("steps") if isinstance(optim, dict) else None
    return RunRow(
        id=id,
        name=str(card.get("title") or place.name)[:200],
        preset=str(card.get("preset") or ""),
        status="finished",
        created=created,
        step=last,
        steps=steps if isinstance(steps, int) and 0 <= steps <= _MOST else last,
        config=config,
        origin="sample",
        path=str(place),
        stamp=mark,
    )


def _snapshot(file: Path, run: RunRow, known: Known) -> TraceRow | None:
    found = _STEP.fullmatch(file.stem)
    if found is None:
        return None
    step = int(found[1])
    id, mark = f"{run.id}-s{step}", stamp(file)
    old = known.get((TraceRow, id))
    if isinstance(old, TraceRow) and old.stamp == mark and old.path == str(file):
        return old
    name, made = f"{run.name}, step {step}", modified(file)
    about = describe_trace(file)
    return TraceRow(id=id, name=name, origin="sample", path=str(file), created=made, run=run.id, step=step, **about)


def read_events(place: Path, run: str) -> tuple[Event, ...]:
    """The events of a bundled run, numbered from 1; lines that are none are left out. Kept until the file changes."""
    file = place / _EVENTS
    try:
        info = file.stat()
    except OSError:
        return ()
    return _read(str(file), run, info.st_mtime_ns, info.st_size)


@functools.lru_cache(maxsize=16)
def _read(file: str, run: str, time: int, size: int) -> tuple[Event, ...]:
    lines = Path(file).read_text("utf-8", errors="replace").splitlines()
    return tuple(event for id, line in enumerate(lines, 1) if (event := _event(line, run, id)) is not None)


def _event(line: str, run: str, id: int) -> Event | None:
    try:
        plain = json.loads(line)
        step, kind, payload = int(plain["step"]), plain["kind"], plain["payload"]
        moment = float(plain.get("time") or 0.0)
        if not (isinstance(payload, dict) and isinstance(kind, str) and 0 <= step <= _MOST and math.isfinite(moment)):
            return None
        return Event(run=run, step=step, kind=kind, payload=payload, id=id, time=moment)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def make_sample_run(
    run: Path,
    events: Iterable[Event],
    out: Path,
    *,
    title: str,
    description: str = "",
    preset: str = "",
    created: str = "",
    snapshots: int = 12,
    points: int = 300,
    logits: bool = False,
) -> Path:
    """Make `out` from the folder and the events of a finished run: what its figures need, and no weights.

    snapshots: how many at most, evenly spaced, the first and the last among them. points: at most so many events of
    each kind that comes at every step; of `drift`, those that fired all stay. logits: whether snapshots keep them.
    Numbers keep six digits. Raises `InputError` for a run that has not finished, or where `out` exists.
    """
    told = _unbroken(events)
    if not any(event.kind == "run_finished" for event in told):
        raise InputError(f"{run.name} has not finished, so it makes no sample.")
    files = {int(found[1]): file for file in _snapshot_files(run) if (found := _STEP.fullmatch(file.stem))}
    kept = sorted(files)
    steps = {kept[i] for i in _spread(len(kept), snapshots)}
    card = {"title": title, "description": description, "preset": preset, "created": created}
    with staged(out) as work:
        shutil.copyfile(run / "config.json", work / "config.json")
        (work / "card.json").write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", "utf-8")
        lines = [_line(event) for event in _thin(told, points) if event.kind != "snapshot" or event.step in steps]
        (work / _EVENTS).write_text("".join(lines), "utf-8")
        (work / "snapshots").mkdir()
        for step in steps:
            _copy_snapshot(files[step], work / "snapshots" / files[step].name, logits)
    return out


def _snapshot_files(run: Path) -> list[Path]:
    return list((run / "snapshots").glob("*.safetensors"))


def _copy_snapshot(source: Path, target: Path, logits: bool) -> None:
    if logits:
        shutil.copyfile(source, target)
        return
    from moescope.trace.io import read_trace, write_trace

    trace = read_trace(source)
    layers = {layer: replace(trace.layers[layer], logits_TE=None) for layer in trace.layer_ids}
    write_trace(replace(trace, layers=layers), target)


def _unbroken(events: Iterable[Event]) -> list[Event]:
    """The events as if the run had never been broken off: what a resume did again stands there once."""
    kept: list[Event] = []
    for event in events:
        if event.kind == "run_resumed":
            start = int(event.payload.get("from_step", event.step))
            kept = [old for old in kept if old.step <= start]
        elif event.kind == "run_started":
            kept = [event]
        elif event.kind not in _LEFT_OUT:
            kept.append(event)
    return kept


def _thin(events: list[Event], points: int) -> Iterator[Event]:
    """The same order, with at most `points` of each kind that comes at every step."""
    chosen: set[int] = set()
    for kind in _THINNED:
        places = [i for i, event in enumerate(events) if event.kind == kind]
        chosen |= {places[i] for i in _spread(len(places), points)}
    for i, event in enumerate(events):
        if event.kind not in _THINNED or i in chosen or _fired(event):
            yield event


def _fired(event: Event) -> bool:
    layers = event.payload.get("layers") if event.kind == "drift" else None
    return any(bool(layer.get("fired")) and any(_flags(layer["fired"])) for layer in layers or ())


def _flags(fired: Any) -> list[bool]:
    return [bool(item) for item in fired] if isinstance(fired, list | tuple) else [bool(fired)]


def _spread(count: int, most: int) -> list[int]:
    """At most `most` of `count` places, evenly spaced, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(i * (count - 1) / max(most - 1, 1)) for i in range(most)})


def _line(event: Event) -> str:
    plain = {"step": event.step, "kind": event.kind, "payload": _short(event.payload), "time": round(event.time, 3)}
    return json.dumps(plain, ensure_ascii=False, separators=(",", ":"), allow_nan=False) + "\n"


def _short(value: Any) -> Any:
    """Plain values with six digits; what JSON has no word for is null."""
    if isinstance(value, Mapping):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_short(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    return value
