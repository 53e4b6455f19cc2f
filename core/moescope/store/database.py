"""The one module that talks SQL: rows in and out of SQLite, and the append-only event log."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from moescope.errors import InputError
from moescope.events import Event
from moescope.store.rows import Row
from moescope.store.schema import MIGRATIONS

R = TypeVar("R", bound=Row)

_BUSY_SECONDS = 30.0


class Database:
    """One connection, safe to share between threads; other processes may read and write the same file.

    Write-ahead logging: readers never wait for a writer, and a process that is killed loses nothing it committed.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        try:
            self._connection = sqlite3.connect(
                path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
        except sqlite3.OperationalError as error:
            raise InputError(f"{path} cannot be used as moescope's database: {error}.") from None
        self._connection.row_factory = sqlite3.Row
        try:
            self._write_ahead()
            self._connection.execute("PRAGMA synchronous=NORMAL")
            self._connection.execute("PRAGMA foreign_keys=ON")
            self._migrate(path)
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise InputError(f"{path} cannot be used as moescope's database: {error}.") from None
        except BaseException:
            self._connection.close()
            raise

    def _write_ahead(self) -> None:
        # Switching the journal needs the file for itself, and SQLite may answer "locked" without waiting.
        deadline = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def _migrate(self, path: Path) -> None:
        if self._version() == len(MIGRATIONS):
            return
        with self.transaction() as connection:
            version = self._version()  # another process may have been first
            if version > len(MIGRATIONS):
                raise InputError(
                    f"{path} was written by a newer moescope (schema {version}, this release knows {len(MIGRATIONS)})."
                )
            for script in MIGRATIONS[version:]:
                for statement in script.split(";"):
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version={len(MIGRATIONS)}")

    def _version(self) -> int:
        return int(self._connection.execute("PRAGMA user_version").fetchone()[0])

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Everything inside is written together or not at all. May be nested; the outermost one commits."""
        with self._lock:
            if self._connection.in_transaction:
                yield self._connection
                return
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def _select(self, sql: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        with self._lock:
            return self._connection.execute(sql, values).fetchall()

    # Rows

    def put(self, row: Row) -> None:
        """Insert the row, or overwrite the one with its id."""
        values = {item.name: getattr(row, item.name) for item in dataclasses.fields(row)}
        columns = ", ".join(values)
        updates = ", ".join(f"{name}=excluded.{name}" for name in values if name != "id")
        holes = ", ".join("?" * len(values))
        with self.transaction() as connection:
            connection.execute(
                f"INSERT INTO {row.TABLE} ({columns}) VALUES ({holes}) ON CONFLICT(id) DO UPDATE SET {updates}",
                _encode(type(row), values),
            )

    def get(self, kind: type[R], id: str) -> R | None:
        found = self._select(f"SELECT * FROM {kind.TABLE} WHERE id = ?", (id,))
        return _decode(kind, found[0]) if found else None

    def all(self, kind: type[R], /, **where: Any) -> list[R]:
        """Rows whose columns equal `where` (a collection: any of these), oldest first."""
        clause, values = _where(where)
        rows = self._select(f"SELECT * FROM {kind.TABLE}{clause} ORDER BY created, rowid", values)
        return [_decode(kind, row) for row in rows]

    def update(self, kind: type[Row], id: str, /, *, where: dict[str, Any] | None = None, **values: Any) -> bool:
        """Change columns of one row if it still fulfils `where`; says whether it did."""
        clause, conditions = _where({"id": id, **(where or {})})
        changes = ", ".join(f"{name}=?" for name in values)
        with self.transaction() as connection:
            done = connection.execute(
                f"UPDATE {kind.TABLE} SET {changes}{clause}", [*_encode(kind, values), *conditions]
            )
            return done.rowcount > 0

    def delete(self, kind: type[Row], id: str) -> bool:
        with self.transaction() as connection:
            return connection.execute(f"DELETE FROM {kind.TABLE} WHERE id = ?", (id,)).rowcount > 0

    # Cards of checkpoints, kept as long as the files do not change

    def card(self, path: str, stamp: str) -> dict[str, Any] | None:
        found = self._select("SELECT card FROM cards WHERE path = ? AND stamp = ?", (path, stamp))
        card: dict[str, Any] | None = json.loads(found[0][0]) if found else None
        return card

    def put_card(self, path: str, stamp: str, card: dict[str, Any]) -> None:
        with self.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO cards VALUES (?, ?, ?)", (path, stamp, json.dumps(card)))

    # Events

    def append(self, events: Sequence[Event]) -> list[Event]:
        """Append in order; the answer carries the ids. Ids grow with the order of commits, across processes too."""
        stored = []
        with self.transaction() as connection:
            for event in events:
                moment = event.time or time.time()
                cursor = connection.execute(
                    "INSERT INTO events (run, step, kind, payload, time) VALUES (?, ?, ?, ?, ?)",
                    (event.run, event.step, event.kind, json.dumps(event.payload), moment),
                )
                stored.append(dataclasses.replace(event, id=cursor.lastrowid or 0, time=moment))
        return stored

    def events_after(
        self, after: int, *, run: str | None = None, kinds: Collection[str] | None = None, limit: int | None = None
    ) -> list[Event]:
        where = {name: value for name, value in (("run", run), ("kind", kinds)) if value is not None}
        clause, values = _where(where)
        clause = f"{clause} AND id > ?" if clause else " WHERE id > ?"
        sql = f"SELECT * FROM events{clause} ORDER BY id LIMIT ?"
        rows = self._select(sql, [*values, after, -1 if limit is None else limit])
        return [
            Event(
                id=row["id"],
                run=row["run"],
                step=row["step"],
                kind=row["kind"],
                payload=json.loads(row["payload"]),
                time=row["time"],
            )
            for row in rows
        ]

    def last_event_id(self) -> int:
        return int(self._select("SELECT coalesce(max(id), 0) FROM events")[0][0])

    def delete_events(self, run: str) -> None:
        with self.transaction() as connection:
            connection.execute("DELETE FROM events WHERE run = ?", (run,))


def _where(tests: dict[str, Any]) -> tuple[str, list[Any]]:
    parts: list[str] = []
    values: list[Any] = []
    for name, value in tests.items():
        if value is None:
            parts.append(f"{name} IS NULL")
        elif isinstance(value, Collection) and not isinstance(value, str):
            parts.append(f"{name} IN ({', '.join('?' * len(value))})")
            values.extend(value)
        else:
            parts.append(f"{name} = ?")
            values.append(value)
    return (f" WHERE {' AND '.join(parts)}" if parts else "", values)


def _encode(kind: type[Row], values: dict[str, Any]) -> list[Any]:
    return [json.dumps(value) if name in kind.JSON and value is not None else value for name, value in values.items()]


def _decode(kind: type[R], row: sqlite3.Row) -> R:
    values = dict(row)
    for name in kind.JSON:
        if values[name] is not None:
            values[name] = json.loads(values[name])
    for name in ("cancel", "orphan"):
        if name in values:
            values[name] = bool(values[name])
    return kind(**values)
