"""Where a run that is watched is written down: the store of a home folder, by the first process alone.

A fault in writing never ends the user's training: it is told as a warning, once, and the run is closed as far as it is.
"""

from __future__ import annotations

import json
import sqlite3
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from moescope.data.base import TokenSet
from moescope.errors import InputError
from moescope.events import Event
from moescope.store import RunRow, Store, default_home
from moescope.trace.io import write_trace
from moescope.trace.schema import Trace
from moescope.watching.ended import PRESET


class Log:
    """One run of the store at `home` (None: the one that `moescope serve` uses), made at once. Raises `InputError`."""

    def __init__(self, home: str | Path | None, name: str, config: Mapping[str, Any], steps: int | None) -> None:
        self._store = Store(default_home() if home is None else Path(home))
        self._run = self._store.add_run(name, PRESET, config, steps=steps or 0)
        self._steps = steps
        self._broken = False
        folder = self._store.run_folder(self.id)
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(dict(config), indent=2) + "\n", "utf-8")

    @property
    def id(self) -> str:
        return self._run.id

    @property
    def name(self) -> str:
        return self._run.name

    def append(self, kind: str, step: int, payload: Mapping[str, Any]) -> None:
        self._attempt(lambda: self._store.append(self._event(kind, step, payload)))

    def snapshot(self, step: int, trace: Trace, tokens: TokenSet) -> None:
        """Write a trace, and the event that says so; the store knows the trace before anyone reads of it."""
        path = f"snapshots/step-{step:06d}.safetensors"
        file = self._store.run_folder(self.id) / path
        event = self._event("snapshot", step, {"path": path, "tokens": tokens.num_tokens})

        def write() -> None:
            file.parent.mkdir(exist_ok=True)
            write_trace(trace, file)
            with self._store.database.transaction():
                name = f"{self.name}, step {step}"
                self._store.add_trace(file, name, "run", id=f"{self.id}-s{step}", run=self.id, step=step)
                self._store.append(event)

        self._attempt(write)

    def close(self, kind: str, step: int, payload: Mapping[str, Any]) -> None:
        """How the run ended; afterwards nothing is written."""
        self.append(kind, step, payload)
        if self._steps is None:
            self._attempt(lambda: self._store.database.update(RunRow, self.id, steps=step))
        self._broken = True
        self._store.close()

    def _event(self, kind: str, step: int, payload: Mapping[str, Any]) -> Event:
        return Event(run=self.id, step=step, kind=kind, payload=payload, time=time.time())

    def _attempt(self, write: Callable[[], object]) -> None:
        if self._broken:
            return
        try:
            write()
        except (OSError, sqlite3.Error, InputError) as error:
            self._broken = True
            warnings.warn(f"moescope watches {self.name!r} no more: {error}", stacklevel=2)
