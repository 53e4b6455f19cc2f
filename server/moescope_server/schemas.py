"""What travels between page and server, named by direction: `...Public` goes out, `...Create` comes in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from moescope.store.rows import OrderKind

MOST = 2**31 - 1
Name = Annotated[str, Field(max_length=200)]


class Out(BaseModel):
    """An answer; NaN and infinity become null."""

    model_config = ConfigDict(ser_json_inf_nan="null", from_attributes=True)


class In(BaseModel):
    """A request; fields that nobody knows are refused."""

    model_config = ConfigDict(extra="forbid")


class InfoPublic(Out):
    version: str
    home: str
    device: str | None
    samples: str | None
    max_upload: int


class CheckpointPublic(Out):
    id: str
    name: str
    origin: str
    created: str
    description: str
    path: str
    run: str | None
    step: int | None
    family: str | None = None
    params: int | None = None
    d_model: int | None = None
    num_layers: int | None = None
    kind: str | None = None
    layers: Sequence[Mapping[str, Any]] = ()
    size_bytes: int = 0
    traces: Sequence[str] = ()
    problems: Sequence[str] = ()


class TracePublic(Out):
    id: str
    name: str
    checkpoint: str | None
    run: str | None
    step: int | None
    origin: str
    tokens: int
    documents: int
    kind: str
    labels: Sequence[Mapping[str, Any]]
    layers: Sequence[Mapping[str, Any]]
    data: Mapping[str, Any]
    self_check: Sequence[Mapping[str, Any]]
    created: str


class TraceDetailPublic(TracePublic):
    palette: Mapping[int, Sequence[str]]
    label_palette: Mapping[str, Sequence[str]]
    default_layer: int | None
    default_label: str | None
    findings: Sequence[Any]


class RunPublic(Out):
    id: str
    name: str
    preset: str
    status: str
    step: int
    steps: int
    created: str
    error: str | None
    config: Mapping[str, Any]
    snapshots: Sequence[str] = ()
    checkpoints: Sequence[str] = ()
    job: str | None
    fork: Mapping[str, Any] | None = None
    ahead: int = 0
    orphan: bool = False
    sample: bool = False


class RunChecked(Out):
    ok: bool
    error: str | None
    config: Mapping[str, Any] | None


class OrderGiven(Out):
    order: str


class JobPublic(Out):
    id: str
    kind: str
    status: str
    stage: str
    progress: float | None
    seconds_left: float | None
    error: str | None
    result: Mapping[str, Any] | None
    created: str


class EventPublic(Out):
    id: int
    run: str
    step: int
    kind: str
    time: float
    payload: Mapping[str, Any]


class JobStarted(Out):
    job: str


class RunStarted(Out):
    run: str
    job: str


class SweepStarted(Out):
    """job: None where another process is at work, or nothing is left to do."""

    sweep: str
    job: str | None


class CheckpointOpen(In):
    path: str = Field(min_length=1, max_length=4096)


class TraceCreate(In):
    """A trace of `checkpoint` over `source` (a data specification) or over pasted `text`."""

    checkpoint: str
    source: str | dict[str, Any] | None = None
    text: str | None = None
    tokens: int = Field(default=4000, ge=1, le=10_000_000)
    name: Name | None = None


class RunCheck(In):
    """A run as it would be started: a bundled preset, or a checkpoint to fork from, or both."""

    preset: str | None = Field(default=None, min_length=1, max_length=200)
    set: dict[str, Any] = Field(default_factory=dict)
    fork: str | None = Field(default=None, max_length=80)


class RunCreate(RunCheck):
    name: Name | None = None


class OrderCreate(In):
    kind: OrderKind
    layer: int | None = Field(default=None, ge=0, le=MOST)
    expert: int | None = Field(default=None, ge=0, le=MOST)


class SweepCreate(In):
    """A bundled sweep; `seeds` in place of its own, `set` on top of every cell."""

    preset: str = Field(min_length=1, max_length=200)
    seeds: list[Annotated[int, Field(ge=0, le=2**31 - 1)]] | None = Field(default=None, min_length=1, max_length=100)
    set: dict[str, Any] = Field(default_factory=dict)
