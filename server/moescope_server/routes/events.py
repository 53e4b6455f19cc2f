"""The one stream that every view follows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query
from fastapi.sse import EventSourceResponse, ServerSentEvent

from moescope.events import Event
from moescope_server.deps import ServicesDep
from moescope_server.schemas import EventPublic

router = APIRouter()


def public_event(event: Event) -> EventPublic:
    return EventPublic.model_validate(event)


@router.get("/events", response_class=EventSourceResponse)
async def stream(
    all: ServicesDep,
    after: Annotated[int | None, Query(ge=0)] = None,
    last_event_id: Annotated[str | None, Header()] = None,
) -> AsyncIterator[ServerSentEvent]:
    """Every event after `Last-Event-ID`, else after `after`, else from now on.

    It opens with `ready`, whose id is the place it starts from: a browser that reconnects resumes there.
    """
    resumed = last_event_id is not None and last_event_id.isdigit()
    start = int(last_event_id or 0) if resumed else all.hub.last if after is None else after
    yield ServerSentEvent(event="ready", id=str(start), data={"after": start})
    async for event in all.hub.follow(start):
        yield ServerSentEvent(event=event.kind, id=str(event.id), raw_data=public_event(event).model_dump_json())
