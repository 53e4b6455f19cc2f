"""Runs, checkpoints, traces, jobs and events on disk."""

from moescope.store.rows import CheckpointRow, JobRow, RunRow, TraceRow
from moescope.store.store import NotFoundError, Store, default_home

__all__ = ["CheckpointRow", "JobRow", "NotFoundError", "RunRow", "Store", "TraceRow", "default_home"]
