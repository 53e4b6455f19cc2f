"""events.jsonl of a cell: appended to as things happen, and read back as if nothing had ever been interrupted."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from pydantic_core import to_json

from moescope.events import Event

FILE: Final = "events.jsonl"
_TAIL: Final = 1 << 16
_ENDS: Final = ("run_stopped", "run_failed", "run_finished")


class EventLog:
    """Appends events to a file, one a line, each there for readers (and after a kill) once `append` returns."""

    def __init__(self, run: Path) -> None:
        run.mkdir(parents=True, exist_ok=True)
        self._file = (run / FILE).open("ab+")
        if self._file.tell() and not _ends_with_newline(run / FILE):
            self._file.write(b"\n")  # a kill may have torn the last line

    def append(self, event: Event) -> None:
        plain = {"run": event.run, "step": event.step, "kind": event.kind, "payload": event.payload}
        self._file.write(to_json({**plain, "time": event.time}, inf_nan_mode="null") + b"\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"


def last_step(run: Path) -> int:
    """The step of the last event, read from the end of the file; 0 where there is none."""
    try:
        with (run / FILE).open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return 0
    return next((event.step for line in reversed(lines) if (event := _event(line)) is not None), 0)


def read_events(run: Path) -> list[Event]:
    """The events of a cell as one uninterrupted run: what was done again after a resume counts once, the last time."""
    try:
        raw = (run / FILE).read_bytes()
    except FileNotFoundError:
        return []
    return _as_one_run(event for line in raw.split(b"\n") if (event := _event(line)) is not None)


def _event(line: bytes) -> Event | None:
    try:
        plain: dict[str, Any] = json.loads(line)
        return Event(
            run=str(plain["run"]),
            step=int(plain["step"]),
            kind=plain["kind"],
            payload=dict(plain["payload"]),
            time=float(plain["time"]),
        )
    except (ValueError, KeyError, TypeError, OverflowError):  # a torn line, or one that no run wrote
        return None


def _as_one_run(events: Iterable[Event]) -> list[Event]:
    kept: list[Event] = []
    for event in events:
        if event.kind == "run_started":
            kept = []
        elif event.kind == "run_resumed":
            first = int(event.payload.get("from_step", event.step))
            kept = [old for old in kept if old.step <= first and old.kind not in _ENDS]
        kept.append(event)
    return kept
