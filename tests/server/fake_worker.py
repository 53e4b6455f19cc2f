"""A worker whose jobs only wait, fail or die, as their spec says: `python fake_worker.py HOME SAMPLES JOB`."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from moescope.errors import InputError
from moescope.events import Event
from moescope.store import JobRow, Store
from moescope_server import tasks, worker
from moescope_server.training import Report


def task(store: Store, row: JobRow, report: Report, stop: Callable[[], bool]) -> Mapping[str, Any]:
    action = row.spec.get("do", "nothing")
    report("working", 0.5)
    if action == "input error":
        raise InputError("The data is upside down.")
    if action == "crash":
        raise RuntimeError("It broke\nin two lines")
    if action == "die":
        print("a last word", file=sys.stderr)
        os._exit(3)
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    deadline = time.monotonic() + float(row.spec.get("seconds", 0))
    while time.monotonic() < deadline:
        if row.kind == "train" and stop():
            store.append(Event(run=row.spec["run"], step=7, kind="run_stopped", payload={"path": "checkpoints/step-7"}))
            return {"finished": False}
        time.sleep(0.02)
    return {"pid": os.getpid(), "finished": True}


if __name__ == "__main__":
    tasks.TASKS = {"trace": task, "train": task, "project": task}  # type: ignore[misc]
    sys.exit(worker.main(sys.argv[1:]))
