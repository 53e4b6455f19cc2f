"""Runs, checkpoints, traces, jobs, orders and events on disk."""

from moescope.store.home import default_home
from moescope.store.rows import CheckpointRow, JobRow, OrderRow, RunRow, TraceRow
from moescope.store.store import NotFoundError, Store

__all__ = ["CheckpointRow", "JobRow", "NotFoundError", "OrderRow", "RunRow", "Store", "TraceRow", "default_home"]
