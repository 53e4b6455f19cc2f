"""What a file on disk says about itself: traces by their header, checkpoints by their config."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import moescope


def stamp(path: Path) -> str:
    """Changes when the file, or a file directly in the folder, is replaced, added, removed or grows."""
    seen = hashlib.blake2b(moescope.__version__.encode(), digest_size=16)
    for file in _files(path):
        info = file.stat()
        seen.update(f"{file.name}\0{info.st_mtime_ns}\0{info.st_size}\0".encode())
    return seen.hexdigest()


def size_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in _files(path))


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from sorted(file for file in path.iterdir() if file.is_file())
    elif path.is_file():
        yield path


def modified(file: Path) -> str:
    """When the file was last written, as `moescope.store.ids.now` says it."""
    return datetime.fromtimestamp(file.stat().st_mtime, UTC).isoformat(timespec="microseconds")


def read_card(file: Path) -> dict[str, Any]:
    """A JSON object; nothing where there is none, or it is damaged."""
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return card if isinstance(card, dict) else {}


def describe_trace(path: Path) -> dict[str, Any]:
    """The columns of a TraceRow that the file itself holds. Raises `InputError` if it is not a readable trace."""
    from moescope.trace.io import read_trace

    trace = read_trace(path)
    return {
        "tokens": trace.num_tokens,
        "documents": int(trace.doc[-1]) + 1 if trace.num_tokens else 0,
        "kind": trace.meta.kind,
        "labels": [
            {"name": name, "scope": labels.scope, "values": list(labels.names)} for name, labels in trace.labels.items()
        ],
        "layers": [dataclasses.asdict(layer) for layer in trace.meta.layers],
        "data": dict(trace.meta.data),
        "self_check": [dict(item) for item in trace.meta.self_check],
        "stamp": stamp(path),
    }


def describe_checkpoint(path: Path) -> dict[str, Any]:
    """The card of a checkpoint, as plain values. Raises `InputError` if it cannot be opened."""
    from moescope.adapters import inspect_checkpoint

    return dataclasses.asdict(inspect_checkpoint(path))
