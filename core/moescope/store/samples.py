"""The bundled checkpoints: where they are, and which rows they make. They are never copied."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import moescope
from moescope.errors import InputError
from moescope.store.describe import describe_trace, stamp
from moescope.store.ids import slug
from moescope.store.rows import CheckpointRow, TraceRow

log = logging.getLogger(__name__)

Known = Mapping[tuple[type, str], CheckpointRow | TraceRow]
"""Rows by kind and id: a sample and its trace have the same id."""


def find_samples() -> Path | None:
    """The sample folder of the checkout this runs from, else the one in the installed package, else None."""
    package = Path(moescope.__file__).resolve().parent
    for folder in (package.parents[1] / "sample_checkpoints", package.parent / "moescope_server" / "_samples"):
        if folder.is_dir():
            return folder
    return None


def scan(folder: Path, known: Known) -> Iterator[CheckpointRow | TraceRow]:
    """A row for every sample and then for its traces; rows in `known` are kept while the files are."""
    for place in sorted(path for path in folder.iterdir() if (path / "config.json").is_file()):
        checkpoint = _checkpoint(place, known)
        yield checkpoint
        for name, file in _trace_files(place):
            try:
                yield _trace(name, file, checkpoint, known)
            except InputError as error:
                log.warning("the sample trace %s cannot be read: %s", file, error)


def _checkpoint(place: Path, known: Known) -> CheckpointRow:
    id, mark = f"sample-{slug(place.name)}", stamp(place)
    old = known.get((CheckpointRow, id))
    if isinstance(old, CheckpointRow) and old.stamp == mark and old.path == str(place):
        return old
    card = _read_card(place / "card.json")
    return CheckpointRow(
        id=id,
        name=str(card.get("title") or place.name),
        description=str(card.get("description") or ""),
        origin="sample",
        path=str(place),
        created=_modified(place / "config.json"),
        stamp=mark,
    )


def _trace_files(place: Path) -> Iterator[tuple[str, Path]]:
    if (place / "trace.safetensors").is_file():
        yield place.name, place / "trace.safetensors"
    for file in sorted((place / "traces").glob("*.safetensors")):
        yield f"{place.name}-{file.stem}", file


def _trace(name: str, file: Path, checkpoint: CheckpointRow, known: Known) -> TraceRow:
    id = f"sample-{slug(name)}"
    old = known.get((TraceRow, id))
    if isinstance(old, TraceRow) and old.stamp == stamp(file) and old.path == str(file):
        return old
    title = checkpoint.name if file.stem == "trace" else f"{checkpoint.name}: {file.stem}"
    return TraceRow(
        id=id,
        name=title,
        origin="sample",
        path=str(file),
        created=_modified(file),
        checkpoint=checkpoint.id,
        **describe_trace(file),
    )


def _read_card(file: Path) -> dict[str, Any]:
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return card if isinstance(card, dict) else {}


def _modified(file: Path) -> str:
    return datetime.fromtimestamp(file.stat().st_mtime, UTC).isoformat(timespec="microseconds")
