"""The bundled checkpoints and runs: where they are, and which rows they make. They are never copied."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import moescope
from moescope.errors import InputError
from moescope.store.database import Database
from moescope.store.describe import describe_trace, modified, read_card, stamp
from moescope.store.ids import slug
from moescope.store.rows import CheckpointRow, RunRow, TraceRow
from moescope.store.sample_runs import Known, SampleRow, scan_runs

log = logging.getLogger(__name__)


def find_samples() -> Path | None:
    """The sample folder of the checkout this runs from, else the one in the installed package, else None."""
    package = Path(moescope.__file__).resolve().parent
    for folder in (package.parents[1] / "sample_checkpoints", package.parent / "moescope_server" / "_samples"):
        if folder.is_dir():
            return folder
    return None


def sync(database: Database, folder: Path | None) -> None:
    """Make the rows of samples say what is in the folder now."""
    known: dict[tuple[type[SampleRow], str], SampleRow] = {}
    for kind in (RunRow, CheckpointRow, TraceRow):
        rows: list[SampleRow] = database.all(kind, origin="sample")
        known |= {(type(row), row.id): row for row in rows}
    there = folder is not None and folder.is_dir()
    wanted = [*scan(folder, known), *scan_runs(folder / "runs", known)] if folder is not None and there else []
    changed = [row for row in wanted if known.get((type(row), row.id)) != row]
    gone = known.keys() - {(type(row), row.id) for row in wanted}
    if not changed and not gone:
        return
    with database.transaction():
        for lost, id in gone:
            database.delete(lost, id)
        for row in changed:
            database.put(row)


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
    card = read_card(place / "card.json")
    return CheckpointRow(
        id=id,
        name=str(card.get("title") or place.name),
        description=str(card.get("description") or ""),
        origin="sample",
        path=str(place),
        created=modified(place / "config.json"),
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
        created=modified(file),
        checkpoint=checkpoint.id,
        **describe_trace(file),
    )
