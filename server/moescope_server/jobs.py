"""Jobs run in processes of their own; this module starts, watches, cancels and buries them."""

from __future__ import annotations

import logging
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moescope.events import Event
from moescope.store import JobRow, NotFoundError, RunRow, Store
from moescope.store.rows import JobKind
from moescope.watching.ended import close_dead
from moescope_server.processes import same_process, send, start_time, this_process
from moescope_server.workers import STAYING, Workers, forget

log = logging.getLogger(__name__)

LANES: Mapping[str, frozenset[str]] = {
    "train": frozenset({"train", "sweep"}),
    "sweep": frozenset({"train", "sweep"}),
    "trace": frozenset({"trace", "project"}),
    "project": frozenset({"trace", "project"}),
}
"""Kinds that wait for each other: one training or sweep, and one trace or projection, at a time."""

GRACE = {"train": 120.0, "sweep": 120.0, "trace": 10.0, "project": 10.0}
"""Seconds that a cancelled job has to end by itself; training writes a checkpoint first, in a sweep too."""

_TICK = 0.2
_LOOK = 3.0
"""Seconds between looks for runs that died without a job to tell it."""
_STARTING = 10.0
"""Seconds after which a job that a server was starting when it was killed is started again."""


def public_job(row: JobRow) -> dict[str, Any]:
    names = ("id", "kind", "status", "stage", "progress", "seconds_left", "error", "result", "created")
    return {name: getattr(row, name) for name in names}


def change_job(store: Store, id: str, *, where: dict[str, Any] | None = None, **values: Any) -> bool:
    """Change a job's row, if it still fulfils `where`, and tell everyone who follows the log."""
    with store.database.transaction():
        if not store.database.update(JobRow, id, where=where, **values):
            return False
        store.append(Event(run="", step=0, kind="job", payload=public_job(store.job(id))))
    return True


def begin_here(store: Store, kind: JobKind, spec: Mapping[str, Any]) -> JobRow:
    """A job that this process does itself, in the foreground; a server can still cancel it, or tell that it died."""
    with store.database.transaction():
        row = store.add_job(kind, spec)
        change_job(store, row.id, status="running", stage="starting", **this_process())
    return store.job(row.id)


@dataclass
class _Watched:
    """A running job: its process if this server started it, and when it will be killed if it was cancelled."""

    process: subprocess.Popen[bytes] | None
    deadline: float | None = None
    seen: float = field(default_factory=time.monotonic)


class JobRunner:
    """A thread that starts queued jobs and watches running ones, also those that an earlier server started."""

    def __init__(self, store: Store, workers: Workers | None = None) -> None:
        self.store = store
        self._workers = workers or Workers(store)
        self._watched: dict[str, _Watched] = {}
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._loop, name="jobs", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop watching. Jobs go on; the next server takes them over."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        self._workers.close()
        for watched in self._watched.values():
            if watched.process is not None:
                forget(watched.process)

    def submit(self, kind: JobKind, spec: Mapping[str, Any]) -> JobRow:
        with self.store.database.transaction():
            row = self.store.add_job(kind, spec)
            self.store.append(Event(run="", step=0, kind="job", payload=public_job(row)))
        self._wake.set()
        return row

    def submit_once(self, kind: JobKind, spec: Mapping[str, Any]) -> JobRow:
        """The job that is already about to do just this, else a new one."""
        for row in self.store.jobs(status=["queued", "running"], kind=kind):
            if row.spec == spec and not row.cancel:
                return row
        return self.submit(kind, spec)

    def cancel(self, id: str) -> JobRow:
        """Ask a job to end. A queued one is cancelled at once; a running one is killed if it does not listen."""
        with self.store.database.transaction():
            row = self.store.job(id)
            if row.status == "queued":
                change_job(self.store, id, status="cancelled")
                self._close_run(row, None)
            elif row.active:
                change_job(self.store, id, cancel=True)
        self._wake.set()
        return self.store.job(id)

    def ahead(self) -> dict[str, int]:
        """How many jobs come before each queued one, by the queued job's id: those at work in its lane count too."""
        running, queued = self.store.jobs(status="running"), self.store.jobs(status="queued")
        return {
            row.id: sum(other.kind in LANES[row.kind] for other in (*running, *queued[:place]))
            for place, row in enumerate(queued)
        }

    def bury_dead(self) -> None:
        """Close jobs whose process has died, where no server watches. One that has not said who it is may yet start."""
        for row in self.store.jobs(status="running"):
            if row.pid is not None and not same_process(row.pid, row.pid_start):
                self._bury(row, _Watched(None))
        self._close_orphans()

    def _close_orphans(self) -> None:
        """Runs that nobody will go on with: their job has ended, or the user's process that trained them has."""
        for run in self.store.database.all(RunRow, status=["queued", "running", "paused"]):
            with self.store.database.transaction():
                current = self.store.run(run.id)
                job = self.store.database.get(JobRow, current.job) if current.job is not None else None
                if current.active and job is not None and not job.active:
                    self._fail(current, "Its process ended without a word.")
        close_dead(self.store)

    def _loop(self) -> None:
        looked = -_LOOK
        while not self._stop.is_set():
            try:
                if time.monotonic() - looked > _LOOK:
                    looked = time.monotonic()
                    self._close_orphans()
                self._tick()
            except Exception:
                log.exception("the job runner stumbled")
                self._stop.wait(1.0)
            self._wake.wait(_TICK if self._watched else 1.0)
            self._wake.clear()

    def _tick(self) -> None:
        for row in self.store.jobs(status="running"):
            watched = self._watched.setdefault(row.id, _Watched(None))
            if self._ended(row, watched):
                self._bury(row, watched)
                del self._watched[row.id]
            elif self._never_began(row, watched):
                change_job(self.store, row.id, where={"status": "running", "pid": None}, status="queued", stage="")
                del self._watched[row.id]
            elif row.cancel:
                self._press(row, watched)
        for id, watched in list(self._watched.items()):
            row = self.store.job(id)
            gone = watched.process is None or watched.process.poll() is not None
            if not row.active and (gone or row.kind in STAYING):
                del self._watched[id]  # it finished and said so itself
        self._start_queued()
        kinds = {row.kind for row in self.store.jobs(status="running")}
        self._workers.let_idle_go(bool(kinds & STAYING))

    def _start_queued(self) -> None:
        busy = {kind for row in self.store.jobs(status="running") for kind in LANES[row.kind]}
        for row in self.store.jobs(status="queued"):
            if row.cancel:
                self.cancel(row.id)
            elif row.kind not in busy:
                self._spawn(row)
                busy |= LANES[row.kind]

    def _spawn(self, row: JobRow) -> None:
        if change_job(self.store, row.id, where={"status": "queued"}, status="running", stage="starting"):
            process = self._workers.start(row)
            self._watched[row.id] = _Watched(process)
            if row.kind not in STAYING:  # known from now on, even if this server is killed before the process speaks
                who = {"pid": process.pid, "pid_start": start_time(process.pid)}
                self.store.database.update(JobRow, row.id, where={"status": "running", "pid": None}, **who)

    @staticmethod
    def _ended(row: JobRow, watched: _Watched) -> bool:
        if watched.process is not None:
            return watched.process.poll() is not None
        return row.pid is not None and not same_process(row.pid, row.pid_start)

    @staticmethod
    def _never_began(row: JobRow, watched: _Watched) -> bool:
        return row.pid is None and watched.process is None and time.monotonic() - watched.seen > _STARTING

    def _press(self, row: JobRow, watched: _Watched) -> None:
        pid = row.pid
        if pid is None and watched.process is not None and row.kind not in STAYING:
            pid = watched.process.pid
        if pid is None:
            return  # a process that waits for work does not listen yet
        if watched.deadline is None:
            watched.deadline = time.monotonic() + GRACE[row.kind]
            send(pid, signal.SIGTERM)
        elif time.monotonic() > watched.deadline:
            send(pid, signal.SIGKILL, group=True)

    def _bury(self, row: JobRow, watched: _Watched) -> None:
        """The process has ended: if its row still says running, it died without a word."""
        code = watched.process.returncode if watched.process is not None else None
        with self.store.database.transaction():
            row = self.store.job(row.id)
            if row.status != "running":
                return
            error = None if row.cancel else self._cause_of_death(row, code)
            status = "cancelled" if row.cancel else "failed"
            change_job(self.store, row.id, status=status, error=error, seconds_left=None)
            self._close_run(row, error)

    def _cause_of_death(self, row: JobRow, code: int | None) -> str:
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            hint = "; the system may have run out of memory" if -code == signal.SIGKILL else ""
            return f"The process was killed by {name} in the stage {row.stage!r}{hint}."
        try:
            lines = self.store.job_log(row.id).read_text(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        last = f": {lines[-1][:300]}" if lines else ""
        return f"The process ended in the stage {row.stage!r} without finishing{last}."

    def _close_run(self, row: JobRow, error: str | None) -> None:
        """A train job's run ends with it, also when the process could not say so."""
        run = row.spec.get("run")
        if row.kind != "train" or run is None:
            return
        try:
            current = self.store.run(run)
        except NotFoundError:
            return
        if not current.active:
            return
        if error is not None:
            self._fail(current, error)
            return
        self.store.append(Event(run=run, step=current.step, kind="run_stopped", payload={"path": None}))

    def _fail(self, run: RunRow, error: str) -> None:
        payload = {"error": error, "orphan": True}
        self.store.append(Event(run=run.id, step=run.step, kind="run_failed", payload=payload))
