"""The home folder: what is known (SQLite) and what is kept (files), and the rules that tie them."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from moescope.errors import InputError
from moescope.events import Event
from moescope.store.database import Database
from moescope.store.describe import describe_checkpoint, describe_trace, size_bytes, stamp
from moescope.store.home import expanded
from moescope.store.ids import is_id, new_id, now
from moescope.store.orders import Orders
from moescope.store.rows import CheckpointOrigin, CheckpointRow, JobKind, JobRow, Row, RunRow, TraceOrigin, TraceRow
from moescope.store.sample_runs import read_events
from moescope.store.samples import find_samples, sync

R = TypeVar("R", bound=Row)

_NAMES: Mapping[type, str] = {CheckpointRow: "checkpoint", TraceRow: "trace", RunRow: "run", JobRow: "job"}

_STATUS_AFTER = {
    "run_started": "running",
    "run_resumed": "running",
    "run_paused": "paused",
    "run_unpaused": "running",
    "run_finished": "finished",
    "run_stopped": "stopped",
    "run_failed": "failed",
}
"""What an event makes of its run."""


class NotFoundError(InputError):
    """There is no row with this id."""


class Store:
    """Checkpoints, traces, runs, jobs and events under one home folder. Several processes may have it open.

    home:    created (mode 0700) if it is not there.
    samples: folder of bundled checkpoints; None finds the one of this installation.
    """

    def __init__(self, home: Path, *, samples: Path | None = None) -> None:
        self.home = expanded(home)
        self.samples = find_samples() if samples is None else samples
        self._sync = threading.Lock()
        try:
            self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name in ("checkpoints", "traces", "runs", "cache/projections", "cache/metrics", "staging", "jobs"):
                (self.home / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.home} cannot be used as the home folder: {error.strerror}.") from None
        self.database_path = self.home / "moescope.sqlite"
        self.database = Database(self.database_path)
        self.orders = Orders(self.database)

    def close(self) -> None:
        self.database.close()

    @property
    def staging(self) -> Path:
        return self.home / "staging"

    def clear_remains(self) -> None:
        """Remove half-done work that nobody is at any more. Only the server that owns the home may call this."""
        for left in self.staging.iterdir():
            _erase(left)
        if not self.jobs(status="running"):
            for left in (*(self.home / "traces").glob(".*.partial"), *(self.home / "cache").glob("*/.*.partial")):
                left.unlink()

    def _one(self, kind: type[R], id: str) -> R:
        row = self.database.get(kind, id) if is_id(id) else None
        if row is None and is_id(id) and id.startswith("sample-"):
            self.sync_samples()  # nobody may have asked for a list yet
            row = self.database.get(kind, id)
        if row is None:
            raise NotFoundError(f"There is no {_NAMES[kind]} {id!r}.")
        return row

    # Checkpoints

    def checkpoints(self) -> list[CheckpointRow]:
        self.sync_samples()
        return self.database.all(CheckpointRow)

    def checkpoint(self, id: str) -> CheckpointRow:
        return self._one(CheckpointRow, id)

    def add_checkpoint(
        self,
        path: Path,
        name: str,
        origin: CheckpointOrigin,
        *,
        id: str | None = None,
        description: str = "",
        run: str | None = None,
        step: int | None = None,
    ) -> CheckpointRow:
        row = CheckpointRow(
            id=id or new_id(name),
            name=name,
            origin=origin,
            path=str(path),
            created=now(),
            stamp=stamp(path),
            description=description,
            run=run,
            step=step,
        )
        self.database.put(row)
        return row

    def delete_checkpoint(self, id: str) -> None:
        """Forget a checkpoint. Files are deleted only if they were uploaded; a sample cannot be deleted."""
        row = self.checkpoint(id)
        if row.origin in ("sample", "run"):
            why = "comes with moescope" if row.origin == "sample" else f"belongs to the run {row.run!r}; delete the run"
            raise InputError(f"{row.name!r} cannot be deleted: it {why}.")
        self.database.delete(CheckpointRow, id)
        if row.origin == "upload":
            self._remove(Path(row.path))

    def card(self, row: CheckpointRow) -> dict[str, Any]:
        """What the checkpoint is (see `moescope.adapters.Card`) and `size_bytes`; `problems` if it cannot be opened."""
        path = Path(row.path)
        mark = stamp(path)
        card = self.database.card(row.path, mark)
        if card is None:
            try:
                card = {"problems": [], **describe_checkpoint(path), "size_bytes": size_bytes(path)}
            except InputError as error:
                card = {"problems": [str(error)], "size_bytes": size_bytes(path)}
            self.database.put_card(row.path, mark, card)
        return card

    # Traces

    def traces(self, **where: Any) -> list[TraceRow]:
        self.sync_samples()
        return self.database.all(TraceRow, **where)

    def trace(self, id: str) -> TraceRow:
        return self._one(TraceRow, id)

    def add_trace(
        self,
        path: Path,
        name: str,
        origin: TraceOrigin,
        *,
        id: str | None = None,
        checkpoint: str | None = None,
        run: str | None = None,
        step: int | None = None,
    ) -> TraceRow:
        """Register a trace file where it is. Raises `InputError` if it is not a trace."""
        row = TraceRow(
            id=id or new_id(name),
            name=name,
            origin=origin,
            path=str(path),
            created=now(),
            checkpoint=checkpoint,
            run=run,
            step=step,
            **describe_trace(path),
        )
        self.database.put(row)
        return row

    def new_trace_path(self, name: str) -> tuple[str, Path]:
        """An id and the place where a trace of that id belongs."""
        id = new_id(name)
        return id, self.home / "traces" / f"{id}.safetensors"

    def delete_trace(self, id: str) -> None:
        """Forget a trace and delete its file, unless it was opened in place; a sample cannot be deleted."""
        row = self.trace(id)
        if row.origin == "sample":
            raise InputError(f"{row.name!r} cannot be deleted: it comes with moescope.")
        self.database.delete(TraceRow, id)
        if row.origin != "path":
            self._remove(Path(row.path))

    # Samples

    def sync_samples(self) -> None:
        """Make the rows of samples say what is in the sample folder now."""
        with self._sync:
            sync(self.database, self.samples)

    # Runs

    def runs(self) -> list[RunRow]:
        self.sync_samples()
        return self.database.all(RunRow)

    def run(self, id: str) -> RunRow:
        return self._one(RunRow, id)

    def run_folder(self, id: str) -> Path:
        if not is_id(id):
            raise NotFoundError(f"There is no run {id!r}.")
        return self.home / "runs" / id

    def add_run(
        self,
        name: str,
        preset: str,
        config: Mapping[str, Any],
        *,
        steps: int = 0,
        id: str | None = None,
        fork: Mapping[str, Any] | None = None,
    ) -> RunRow:
        row = RunRow(
            id=id or new_id(name),
            name=name,
            preset=preset,
            status="queued",
            created=now(),
            steps=steps,
            config=dict(config),
            fork=fork,
        )
        self.database.put(row)
        return row

    def delete_run(self, id: str) -> None:
        """Delete a run with its checkpoints, snapshots and events. Refused while a process trains it, or will."""
        row = self.run(id)
        if row.origin == "sample":
            raise InputError(f"{row.name!r} cannot be deleted: it comes with moescope.")
        if row.active:
            raise InputError(f"{row.name!r} is {row.status}; stop it before deleting it.")
        with self.database.transaction():
            self.database.delete(RunRow, id)
            self.database.delete_events(id)
        self._remove(self.run_folder(id))

    # Jobs

    def jobs(self, **where: Any) -> list[JobRow]:
        return self.database.all(JobRow, **where)

    def job(self, id: str) -> JobRow:
        return self._one(JobRow, id)

    def add_job(self, kind: JobKind, spec: Mapping[str, Any]) -> JobRow:
        row = JobRow(id=new_id(kind), kind=kind, status="queued", created=now(), spec=dict(spec))
        self.database.put(row)
        return row

    def job_log(self, id: str) -> Path:
        return self.home / "jobs" / f"{id}.log"

    # Events

    def append(self, event: Event) -> Event:
        """Append one event and let its run's row follow. Returns it with its id."""
        return self.append_many([event])[0]

    def append_many(self, events: Iterable[Event]) -> list[Event]:
        with self.database.transaction():
            stored = self.database.append(list(events))
            for event in stored:
                self._follow(event)
        return stored

    def _follow(self, event: Event) -> None:
        changes: dict[str, Any] = {}
        if event.kind in _STATUS_AFTER:
            dead = bool(event.payload.get("orphan"))
            changes = {"status": _STATUS_AFTER[event.kind], "error": event.payload.get("error"), "orphan": dead}
        if event.kind in ("train", *_STATUS_AFTER) and event.kind != "run_failed":
            changes["step"] = event.step
        if changes and event.run:
            self.database.update(RunRow, event.run, **changes)
        if event.kind == "order":
            self.orders.answer(event)

    def events_after(
        self, id: int, run: str | None = None, kinds: Collection[str] | None = None, limit: int | None = None
    ) -> list[Event]:
        """Events with a larger id, in order. A sample run's are numbered by themselves: they are in no one's log."""
        row = self.database.get(RunRow, run) if run is not None else None
        if row is None or row.path is None:
            return self.database.events_after(id, run=run, kinds=kinds, limit=limit)
        mine = (event for event in read_events(Path(row.path), row.id) if event.id > id)
        return [event for event in mine if kinds is None or event.kind in kinds][:limit]

    def last_event_id(self) -> int:
        return self.database.last_event_id()

    # Files

    def _remove(self, path: Path) -> None:
        """Delete a file or folder of the home: out of sight at once, then gone."""
        if not path.is_relative_to(self.home) or path == self.home:
            raise ValueError(f"{path} is not inside the home folder")
        if not path.exists():
            return
        doomed = self.staging / new_id("deleted")
        path.replace(doomed)
        _erase(doomed)


def _erase(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
