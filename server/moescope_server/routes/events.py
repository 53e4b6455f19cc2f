"""The one stream that every view follows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated, Final

from fastapi import APIRouter, Header, Query
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from starlette.concurrency import run_in_threadpool

from moescope.events import Event
from moescope_server.deps import ServicesDep
from moescope_server.hub import EventHub
from moescope_server.schemas import EventPublic

router = APIRouter()

MAX_ID: Final = 2**63 - 1
"""SQLite's largest integer."""
_DIGITS = 18
RETRY: Final = 500
"""Milliseconds after which a browser that lost the stream asks again."""


def public_event(event: Event) -> EventPublic:
    return EventPublic.model_validate(event)


@router.get("/events")
async def stream(
    all: ServicesDep,
    after: Annotated[int | None, Query(ge=0, le=MAX_ID)] = None,
    last_event_id: Annotated[str | None, Header()] = None,
) -> EventSourceResponse:
    """Every event after `Last-Event-ID`, else after `after`, else from now on.

    It opens with `ready`, whose id is the place it starts from: a browser that reconnects resumes there. A place beyond
    the end of the log is its end, since nothing would ever come after it.
    """
    asked = after
    if last_event_id is not None and last_event_id.isdecimal():
        asked = int(last_event_id) if len(last_event_id) <= _DIGITS else MAX_ID
    last = max(all.hub.last, await run_in_threadpool(all.store.last_event_id))
    start = all.hub.last if asked is None else min(asked, last)
    headers = {"x-accel-buffering": "no"}  # nginx would hold events back
    return EventSourceResponse(_messages(all.hub, start), headers=headers)


async def _messages(hub: EventHub, start: int) -> AsyncIterator[bytes]:
    # Not fastapi's own generator routes: they end in an unhandled error when a browser leaves in the middle.
    yield format_sse_event(event="ready", id=str(start), data_str=f'{{"after": {start}}}', retry=RETRY)
    async with aclosing(hub.follow(start)) as batches:
        async for batch in batches:
            yield b"".join(hub.written(event, _message) for event in batch) or KEEPALIVE_COMMENT


def _message(event: Event) -> bytes:
    data = public_event(event).model_dump_json()
    return format_sse_event(event=event.kind, id=str(event.id), data_str=data)
