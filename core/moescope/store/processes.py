"""Telling whether a process that was started before, perhaps by another server, is still the same one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any


def start_time(pid: int) -> str | None:
    """When the process started, as the system says it; None if there is none or it is a zombie.

    Process ids are used again; an id with its start time is one process for ever.
    """
    if Path("/proc/self/stat").exists():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else fields[19]
    shown = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return shown.stdout.strip() or None


def this_process() -> dict[str, Any]:
    """Columns of a job's row that say which process does it."""
    return {"pid": os.getpid(), "pid_start": start_time(os.getpid())}


def same_process(pid: int | None, started: str | None) -> bool:
    return pid is not None and started is not None and start_time(pid) == started
