"""How commands talk: results on stdout, progress on stderr and only where someone watches."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from moescope.errors import InputError
from moescope.store import CheckpointRow, Store, TraceRow, default_home
from moescope.store.ids import is_id
from moescope_server.training import Report
from moescope_server.wire import encode

_FILE_WIDTH = 200


def print_json(value: Any) -> None:
    sys.stdout.write(encode(value).decode() + "\n")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns whose cells are numbers are aligned right."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for index, name in enumerate(columns):
        numeric = all(isinstance(row[index], int | float | None) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(shown(cell)) for cell in row))
    Console(width=None if sys.stdout.isatty() else _FILE_WIDTH).print(table)


def shown(value: object) -> str:
    """A number in four digits, None as a dash."""
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@contextmanager
def progress_bar(steps: int | None = None) -> Iterator[Report]:
    """A bar on stderr; silent where stderr is not a terminal. With `steps`, a share is shown as steps done."""
    console = Console(stderr=True)
    count = [MofNCompleteColumn()] if steps else []
    columns = (TextColumn("{task.description}"), BarColumn(), *count, TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=None)

        def report(stage: str, progress: float | None = None, seconds_left: float | None = None) -> None:
            total = None if progress is None else float(steps or 1)
            bar.update(task, description=stage, total=total, completed=(progress or 0.0) * (steps or 1))

        yield report


def open_store(home: Path | None) -> Store:
    return Store(home or default_home())


def find_checkpoint(text: str, home: Path | None) -> Path:
    """A path as it is, else the checkpoint of that id. Raises `InputError`."""
    if Path(text).exists():
        return Path(text)
    row = _stored(CheckpointRow, text, home)
    if row is None:
        raise InputError(f"{text!r} is neither a folder here nor a checkpoint in the home folder.")
    return Path(row.path)


def find_trace(text: str, home: Path | None) -> Path:
    """A path as it is, else the trace of that id. Raises `InputError`."""
    if Path(text).exists():
        return Path(text)
    row = _stored(TraceRow, text, home)
    if row is None:
        raise InputError(f"{text!r} is neither a file here nor a trace in the home folder.")
    return Path(row.path)


def _stored(kind: type[Any], id: str, home: Path | None) -> Any:
    if not is_id(id):
        return None
    store = open_store(home)
    try:
        store.sync_samples()
        return store.database.get(kind, id)
    finally:
        store.close()
