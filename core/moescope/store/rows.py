"""The rows of the store, as frozen dataclasses. Fields that are not plain values are kept as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

CheckpointOrigin = Literal["sample", "upload", "path", "run"]
TraceOrigin = Literal["sample", "upload", "path", "run", "recorded"]
RunOrigin = Literal["run", "sample"]
RunStatus = Literal["queued", "running", "paused", "finished", "stopped", "failed"]
OrderKind = Literal["pause", "go_on", "checkpoint", "split", "retire"]
JobKind = Literal["trace", "train", "project", "sweep"]
JobStatus = Literal["queued", "running", "done", "failed", "cancelled"]


@dataclass(frozen=True, kw_only=True)
class CheckpointRow:
    """A checkpoint somewhere on disk. `stamp` changes when its files do. `run` and `step` say which run wrote it."""

    TABLE: ClassVar[str] = "checkpoints"
    JSON: ClassVar[frozenset[str]] = frozenset()

    id: str
    name: str
    origin: CheckpointOrigin
    path: str
    created: str
    stamp: str = ""
    description: str = ""
    run: str | None = None
    step: int | None = None


@dataclass(frozen=True, kw_only=True)
class TraceRow:
    """A trace file, and what its header says: `labels` are `{name, scope, values}`, `layers` the trace's layers."""

    TABLE: ClassVar[str] = "traces"
    JSON: ClassVar[frozenset[str]] = frozenset({"labels", "layers", "data", "self_check"})

    id: str
    name: str
    origin: TraceOrigin
    path: str
    created: str
    stamp: str = ""
    checkpoint: str | None = None
    run: str | None = None
    step: int | None = None
    tokens: int = 0
    documents: int = 0
    kind: str = "text"
    labels: Sequence[Mapping[str, Any]] = ()
    layers: Sequence[Mapping[str, Any]] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    self_check: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """A training run; `status`, `step` and `orphan` (found dead, without a word of its own) follow its events.

    fork: `{run, checkpoint, step}` that it went on from. path, stamp: a sample's folder, and what changes when its
    files do; its events are not in the database.
    """

    TABLE: ClassVar[str] = "runs"
    JSON: ClassVar[frozenset[str]] = frozenset({"config", "fork"})

    id: str
    name: str
    preset: str
    status: RunStatus
    created: str
    step: int = 0
    steps: int = 0
    error: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    job: str | None = None
    fork: Mapping[str, Any] | None = None
    orphan: bool = False
    origin: RunOrigin = "run"
    path: str | None = None
    stamp: str = ""

    @property
    def active(self) -> bool:
        """Whether a process trains it, or will."""
        return self.status in ("queued", "running", "paused")


@dataclass(frozen=True, kw_only=True)
class OrderRow:
    """What somebody asked of a run in training; `answer` is the id of the `order` event that says what came of it."""

    TABLE: ClassVar[str] = "orders"
    JSON: ClassVar[frozenset[str]] = frozenset()

    id: str
    run: str
    kind: OrderKind
    created: str
    layer: int | None = None
    expert: int | None = None
    answer: int | None = None


@dataclass(frozen=True, kw_only=True)
class JobRow:
    """Work in a process of its own. `spec` is what to do; `pid` with `pid_start` names one process for ever."""

    TABLE: ClassVar[str] = "jobs"
    JSON: ClassVar[frozenset[str]] = frozenset({"spec", "result"})

    id: str
    kind: JobKind
    status: JobStatus
    created: str
    spec: Mapping[str, Any] = field(default_factory=dict)
    stage: str = ""
    progress: float | None = None
    seconds_left: float | None = None
    error: str | None = None
    result: Mapping[str, Any] | None = None
    cancel: bool = False
    pid: int | None = None
    pid_start: str | None = None

    @property
    def active(self) -> bool:
        return self.status in ("queued", "running")


Row = CheckpointRow | TraceRow | RunRow | OrderRow | JobRow
