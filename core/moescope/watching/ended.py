"""Runs that are trained by a process of the user's: which these are, and which have died without a word.

Nothing here imports torch; the server asks.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any, Final

from moescope.events import Event
from moescope.store import RunRow, Store
from moescope.store.processes import same_process, this_process

PRESET: Final = "watch"
"""What stands as the preset of a run that nobody here started."""


def this_place() -> dict[str, Any]:
    """What a run's configuration says of the process that trains it: `{host, pid, pid_start}`."""
    return {"host": socket.gethostname(), **this_process()}


def close_dead(store: Store) -> None:
    """Runs whose process, of this machine, is gone without having said how the run ended: say that it failed."""
    for run in store.database.all(RunRow, preset=PRESET, status=["queued", "running"]):
        place: Mapping[str, Any] = run.config.get("process") or {}
        here = place.get("host") == socket.gethostname()
        if not here or same_process(place.get("pid"), place.get("pid_start")):
            continue
        error = f"The process that trained it (pid {place.get('pid')}) is gone, and said nothing of it."
        with store.database.transaction():
            if store.run(run.id).active:  # it may have said so just now
                payload = {"error": error, "orphan": True}
                store.append(Event(run=run.id, step=run.step, kind="run_failed", payload=payload))
