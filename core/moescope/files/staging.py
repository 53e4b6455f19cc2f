"""Work that appears complete or not at all."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moescope.errors import InputError


@contextmanager
def staged(folder: str | Path, *, staging: Path | None = None) -> Iterator[Path]:
    """An empty folder to work in, renamed to `folder` at the end; after any failure nothing is left of it.

    The work happens in `staging` (on the same file system), by default beside `folder`. Raises `InputError` if `folder`
    exists, before any work is done.
    """
    target = Path(folder)
    if target.exists():
        raise InputError(f"{target.name} exists already.")
    parent = staging or target.parent
    parent.mkdir(parents=True, exist_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = parent / f".{target.name}.{uuid.uuid4().hex[:12]}.staging"
    work.mkdir()
    try:
        yield work
        work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def usual_mode(path: str | Path) -> None:
    """Give a file the permissions that `open` would have given it here (the safetensors library writes 0600)."""
    path = Path(path)
    probe = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.mode")
    probe.touch()
    try:
        path.chmod(probe.stat().st_mode & 0o777)
    finally:
        probe.unlink()
