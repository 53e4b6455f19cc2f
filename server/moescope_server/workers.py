"""The processes that do jobs: one for each run, and one that stays warm for traces and projections."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from moescope.store import JobRow, Store

COMMAND: Final = (sys.executable, "-m", "moescope_server.worker")
STAYING: Final = frozenset({"trace", "project"})
"""Kinds whose process waits for more: a fresh one imports torch for seconds, and compiles for 8 to 18 before a map."""

IDLE_SECONDS: Final = 600.0


class Workers:
    """Starts processes. None of them ends with this one by Ctrl-C or by a kill; a warm one ends when it is idle."""

    def __init__(self, store: Store, command: Sequence[str] = COMMAND) -> None:
        self.store, self.command = store, tuple(command)
        self._warm: subprocess.Popen[bytes] | None = None
        self._used = 0.0

    def start(self, row: JobRow) -> subprocess.Popen[bytes]:
        """The process that does the job from now on."""
        if row.kind not in STAYING:
            return self._spawn(row.id, self.store.job_log(row.id), subprocess.DEVNULL)
        self._used = time.monotonic()
        if self._warm is None or not self._hand_over(self._warm, row):
            self.close()
            self._warm = self._spawn("-", self.store.home / "jobs" / "warm.log", subprocess.PIPE)
            self._hand_over(self._warm, row)
        return self._warm

    def let_idle_go(self, busy: bool) -> None:
        """End the warm process if it has had nothing to do for long. `busy`: it has a job now."""
        if busy:
            self._used = time.monotonic()
        elif self._warm is not None and time.monotonic() - self._used > IDLE_SECONDS:
            self.close()

    def close(self) -> None:
        """Let the warm process end when it has done what it is at."""
        if self._warm is not None and self._warm.stdin is not None:
            with suppress(BrokenPipeError):
                self._warm.stdin.close()
            forget(self._warm)
            self._warm = None

    @staticmethod
    def _hand_over(process: subprocess.Popen[bytes], row: JobRow) -> bool:
        if process.poll() is not None or process.stdin is None:
            return False
        try:
            process.stdin.write(f"{row.id}\n".encode())
        except BrokenPipeError:
            return False
        return True

    def _spawn(self, what: str, log: Path, stdin: int) -> subprocess.Popen[bytes]:
        command = [*self.command, str(self.store.home), str(self.store.samples or ""), what]
        with log.open("wb") as output:
            return subprocess.Popen(
                command,
                bufsize=0,
                stdin=stdin,
                stdout=output,
                stderr=output,
                start_new_session=True,  # its own group: neither Ctrl-C nor the server's death reaches it
                env=_environment(),
            )


def forget(process: subprocess.Popen[bytes]) -> None:
    """Leave a process to itself on purpose: Python need not warn that it still runs."""
    if process.poll() is None:
        process.returncode = 0


def _environment() -> dict[str, str]:
    """torch and numba use the cores there are; nothing waits in a buffer when a process is killed."""
    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")
    environment["PYTHONUNBUFFERED"] = "1"
    return environment
