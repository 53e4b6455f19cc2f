"""One server over one home; and what the next one must know if this one is killed, so that open pages find it again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

from moescope.errors import InputError
from moescope.store import Store


@dataclass
class Lock:
    """The lock's file. `port` and `token` are those of a server that was killed: an open page still knows them."""

    file: TextIO | None = None
    port: int | None = None
    token: str | None = None

    def note(self, port: int, token: str) -> None:
        """Write down where this server is. The file is for its owner's eyes, and emptied when the server ends."""
        self._write(f"{os.getpid()}\n{port}\n{token}\n")

    def _write(self, text: str) -> None:
        if self.file is not None:
            self.file.seek(0)
            self.file.truncate()
            self.file.write(text)
            self.file.flush()


@contextmanager
def sole_owner(store: Store) -> Iterator[Lock]:
    """Two servers over one home would both start its jobs. The lock goes with the process, however it ends."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield Lock()
        return
    descriptor = os.open(store.home / "server.lock", os.O_RDWR | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pid = next(iter(file.read().split()), "another process")
            raise InputError(
                f"{store.home} is already served by process {pid}; stop that server or give another --home."
            ) from None
        os.fchmod(descriptor, 0o600)
        lock = _left(file)
        lock._write(f"{os.getpid()}\n")
        try:
            yield lock
        finally:
            lock._write("")


def _left(file: TextIO) -> Lock:
    """What a server that could not end properly has left: it says where it was."""
    words = file.read(1000).split()
    if len(words) == 3 and words[1].isdecimal() and 0 < int(words[1]) < 2**16 and len(words[2]) >= 32:
        return Lock(file, int(words[1]), words[2])
    return Lock(file)
