"""Signals to processes that may have ended, and telling them apart (`moescope.store.processes`)."""

from __future__ import annotations

import contextlib
import os
import signal

from moescope.store.processes import same_process, start_time, this_process

__all__ = ["same_process", "send", "start_time", "this_process"]


def send(pid: int, number: signal.Signals, *, group: bool = False) -> None:
    """Send a signal to a process, or to the whole group if it leads one; one that has ended is no error."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if group and os.getpgid(pid) == pid:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)
