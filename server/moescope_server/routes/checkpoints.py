"""Checkpoints: listed, uploaded, opened in place, forgotten."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

from moescope.errors import InputError
from moescope.files import shown
from moescope.store import CheckpointRow, Store, TraceRow
from moescope_server.deps import Id, ServicesDep, StoreDep
from moescope_server.schemas import CheckpointOpen, CheckpointPublic, TracePublic
from moescope_server.uploads import is_trace, take_upload

router = APIRouter(prefix="/checkpoints")

_CARD = ("family", "params", "d_model", "num_layers", "kind", "layers", "size_bytes", "problems")


def public(store: Store, row: CheckpointRow, traces: list[str] | None = None) -> CheckpointPublic:
    card = store.card(row)
    if traces is None:
        traces = [trace.id for trace in store.traces(checkpoint=row.id)]
    return CheckpointPublic(
        id=row.id,
        name=row.name,
        origin=row.origin,
        created=row.created,
        description=row.description or str(card.get("description") or ""),
        path=row.path,
        run=row.run,
        step=row.step,
        traces=traces,
        **{name: card[name] for name in _CARD if card.get(name) is not None},
    )


@router.get("")
def list_checkpoints(store: StoreDep) -> list[CheckpointPublic]:
    of_checkpoint: dict[str | None, list[str]] = {}
    for trace in store.traces():
        of_checkpoint.setdefault(trace.checkpoint, []).append(trace.id)
    return [public(store, row, of_checkpoint.get(row.id, [])) for row in store.checkpoints()]


@router.get("/{id}")
def one_checkpoint(id: Id, store: StoreDep) -> CheckpointPublic:
    return public(store, store.checkpoint(id))


@router.post("/open")
def open_in_place(body: CheckpointOpen, store: StoreDep) -> CheckpointPublic | TracePublic:
    """A checkpoint; or a trace, if the path is a trace's file. What is open already is answered as it is."""
    from moescope.adapters import inspect_checkpoint

    path = _resolved(body.path)
    if path.suffix == ".safetensors" and is_trace(path):
        known = store.traces(path=str(path))
        return TracePublic.model_validate(known[0] if known else store.add_trace(path, path.stem, "path"))
    inspect_checkpoint(path)
    rows = [row for row in store.checkpoints() if row.path == str(path)]
    return public(store, rows[0] if rows else store.add_checkpoint(path, path.name, "path"))


def _resolved(text: str) -> Path:
    """The place that a path names, links followed. Raises `InputError` for one that cannot be."""
    try:
        path = Path(text).expanduser()
        if not path.is_absolute():
            raise InputError(f"{text} is not an absolute path.")
        if not path.exists():
            raise InputError(f"There is nothing at {path}.")
        return path.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # too long, a home of nobody, a loop of links, a NUL
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).rstrip(".")
        raise InputError(f"{shown(text)} is not a path that can be opened: {reason}.") from None


@router.post("/upload")
async def upload(request: Request, all: ServicesDep) -> CheckpointPublic | TracePublic:
    """A checkpoint; or a trace, if it was a trace's file."""
    row = await take_upload(request, all.store, all.settings.max_upload)
    if isinstance(row, TraceRow):
        return TracePublic.model_validate(row)
    return await run_in_threadpool(public, all.store, row)


@router.delete("/{id}", status_code=204)
def delete_checkpoint(id: Id, store: StoreDep) -> None:
    store.delete_checkpoint(id)
