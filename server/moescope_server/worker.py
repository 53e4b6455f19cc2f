"""Jobs, in a process of their own: `python -m moescope_server.worker HOME SAMPLES JOB`.

With `-` for JOB, it does the jobs whose ids it reads from its standard input, and ends with it.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

from moescope.errors import InputError
from moescope.store import JobRow, Store
from moescope_server.jobs import change_job
from moescope_server.processes import this_process
from moescope_server.training import CancelledError

_REPORT_EVERY = 0.25

GENTLE = frozenset({"train", "sweep"})
"""Kinds that stop after a step, with a checkpoint, where the others are interrupted."""


class JobReport:
    """How far a job is. Called as often as one likes; the store hears of it at most four times a second."""

    def __init__(self, store: Store, id: str) -> None:
        self._store, self._id = store, id
        self._stage, self._began, self._told = "", time.monotonic(), 0.0
        self._from = 0.0  # where the stage began: a fork, or a run that goes on, begins in the middle

    def __call__(self, stage: str, progress: float | None = None, seconds_left: float | None = None) -> None:
        """`progress` is in 0..1 within the stage; without `seconds_left` the time left is estimated from it."""
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._began, self._from = stage, now, progress or 0.0
        elif now - self._told < _REPORT_EVERY:
            return
        elapsed = now - self._began
        if seconds_left is None and progress and progress > self._from and elapsed > 1:
            seconds_left = elapsed * (1 - progress) / (progress - self._from)
        self._told = now
        values = {"stage": stage, "progress": progress, "seconds_left": seconds_left}
        change_job(self._store, self._id, where={"status": "running"}, **values)


def finish(store: Store, id: str, status: str, **values: Any) -> None:
    """Write down how a job ended, unless it has ended already."""
    if status == "done":
        values["progress"] = 1.0
    change_job(store, id, where={"status": "running"}, status=status, seconds_left=None, **values)


def run(store: Store, id: str) -> int:
    """Do the job and write down how it ended; the exit status says the same."""
    with store.database.transaction():
        row = store.job(id)
        if row.status != "running" or row.pid not in (None, os.getpid()):
            return 1  # it was cancelled, given up, or given to another process before this one came to it
        store.database.update(JobRow, id, **this_process())
    from moescope_server.tasks import TASKS

    stop = threading.Event()
    _listen_for_cancel(row.kind in GENTLE, stop)
    try:
        result = TASKS[row.kind](store, row, JobReport(store, id), stop.is_set)
    except CancelledError:
        finish(store, id, "cancelled")
        return 1
    except InputError as error:
        finish(store, id, "failed", error=str(error))
        return 2
    except BaseException as error:
        traceback.print_exc()
        finish(store, id, "failed", error=_sentence(error))
        return 1
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    cancelled = stop.is_set() and not result.get("finished", False)
    finish(store, id, "cancelled" if cancelled else "done", result=result)
    return 0


def _listen_for_cancel(gently: bool, stop: threading.Event) -> None:
    """SIGTERM asks training to stop after its step; everything else is interrupted where it is."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.set()
        if not gently:
            raise CancelledError

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _sentence(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__


def _run_many(store: Store) -> int:
    """Do one job after another, each with its own log, until there is nothing more to read."""
    for line in sys.stdin:
        id = line.strip()
        with store.job_log(id).open("wb") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        run(store, id)
        _free_memory()
    return 0


def _free_memory() -> None:
    """Give back what the job held, on a GPU too: training may need it next."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def main(arguments: list[str]) -> int:
    home, samples, what = arguments
    store = Store(Path(home), samples=Path(samples) if samples else None)
    try:
        return _run_many(store) if what == "-" else run(store, what)
    finally:
        store.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
