"""The tables, as a list of migrations: the n-th brings a database from version n to n + 1."""

from __future__ import annotations

from typing import Final

_FIRST = """
CREATE TABLE runs (
  id TEXT PRIMARY KEY, name TEXT NOT NULL, preset TEXT NOT NULL, status TEXT NOT NULL, created TEXT NOT NULL,
  step INTEGER NOT NULL, steps INTEGER NOT NULL, error TEXT, config TEXT NOT NULL, job TEXT);
CREATE TABLE checkpoints (
  id TEXT PRIMARY KEY, name TEXT NOT NULL, origin TEXT NOT NULL, path TEXT NOT NULL, created TEXT NOT NULL,
  stamp TEXT NOT NULL, description TEXT NOT NULL, run TEXT REFERENCES runs(id) ON DELETE CASCADE, step INTEGER);
CREATE TABLE traces (
  id TEXT PRIMARY KEY, name TEXT NOT NULL, origin TEXT NOT NULL, path TEXT NOT NULL, created TEXT NOT NULL,
  stamp TEXT NOT NULL, checkpoint TEXT REFERENCES checkpoints(id) ON DELETE SET NULL,
  run TEXT REFERENCES runs(id) ON DELETE CASCADE, step INTEGER, tokens INTEGER NOT NULL, documents INTEGER NOT NULL,
  kind TEXT NOT NULL, labels TEXT NOT NULL, layers TEXT NOT NULL, data TEXT NOT NULL, self_check TEXT NOT NULL);
CREATE TABLE jobs (
  id TEXT PRIMARY KEY, kind TEXT NOT NULL, status TEXT NOT NULL, created TEXT NOT NULL, spec TEXT NOT NULL,
  stage TEXT NOT NULL, progress REAL, seconds_left REAL, error TEXT, result TEXT, cancel INTEGER NOT NULL,
  pid INTEGER, pid_start TEXT);
CREATE TABLE events (
  id INTEGER PRIMARY KEY AUTOINCREMENT, run TEXT NOT NULL, step INTEGER NOT NULL, kind TEXT NOT NULL,
  payload TEXT NOT NULL, time REAL NOT NULL);
CREATE TABLE cards (path TEXT PRIMARY KEY, stamp TEXT NOT NULL, card TEXT NOT NULL);
CREATE INDEX events_of_run ON events (run, id);
CREATE INDEX traces_of_run ON traces (run);
CREATE INDEX traces_of_checkpoint ON traces (checkpoint);
CREATE INDEX checkpoints_of_run ON checkpoints (run);
CREATE INDEX jobs_by_status ON jobs (status);
"""

_GROWTH = """
ALTER TABLE runs ADD COLUMN fork TEXT;
ALTER TABLE runs ADD COLUMN orphan INTEGER NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN origin TEXT NOT NULL DEFAULT 'run';
ALTER TABLE runs ADD COLUMN path TEXT;
ALTER TABLE runs ADD COLUMN stamp TEXT NOT NULL DEFAULT '';
CREATE TABLE orders (
  id TEXT PRIMARY KEY, run TEXT NOT NULL REFERENCES runs(id) ON DELETE CASCADE, kind TEXT NOT NULL,
  layer INTEGER, expert INTEGER, created TEXT NOT NULL, answer INTEGER);
CREATE INDEX orders_of_run ON orders (run, answer);
"""

MIGRATIONS: Final[tuple[str, ...]] = (_FIRST, _GROWTH)
