"""The one stream that every view follows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Header, Query
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event

from moescope.events import Event
from moescope_server.deps import ServicesDep
from moescope_server.hub import EventHub
from moescope_server.schemas import EventPublic

router = APIRouter()


def public_event(event: Event) -> EventPublic:
    return EventPublic.model_validate(event)


@router.get("/events")
async def stream(
    all: ServicesDep,
    after: Annotated[int | None, Query(ge=0)] = None,
    last_event_id: Annotated[str | None, Header()] = None,
) -> EventSourceResponse:
    """Every event after `Last-Event-ID`, else after `after`, else from now on.

    It opens with `ready`, whose id is the place it starts from: a browser that reconnects resumes there.
    """
    resumed = last_event_id is not None and last_event_id.isdecimal()
    start = int(last_event_id or 0) if resumed else all.hub.last if after is None else after
    headers = {"x-accel-buffering": "no"}  # nginx would hold events back
    return EventSourceResponse(_messages(all.hub, start), headers=headers)


async def _messages(hub: EventHub, start: int) -> AsyncIterator[bytes]:
    # Not fastapi's own generator routes: they end in an unhandled error when a browser leaves in the middle.
    yield format_sse_event(event="ready", id=str(start), data_str=f'{{"after": {start}}}')
    async with aclosing(hub.follow(start)) as batches:
        async for batch in batches:
            yield b"".join(map(_message, batch)) or KEEPALIVE_COMMENT


def _message(event: Event) -> bytes:
    data = public_event(event).model_dump_json()
    return format_sse_event(event=event.kind, id=str(event.id), data_str=data)
