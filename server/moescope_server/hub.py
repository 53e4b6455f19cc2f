"""One reader of the event log for all browsers that follow it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Callable

from moescope.events import Event
from moescope.store import Store
from moescope.store.database import Database

_KEPT = 4096
_PAGE = 1000


class EventHub:
    """Polls the log once for everyone and keeps the latest events.

    A follower is only a position in the log: it reads from the kept events, or from the database where it is behind
    them. So nothing is queued per follower, a slow one loses nothing, and none sees an event twice.
    """

    def __init__(self, store: Store, poll: float) -> None:
        self.store = store
        self.poll = poll
        self.closed = False
        self.last = 0
        self._kept: deque[Event] = deque(maxlen=_KEPT)
        self._messages: dict[int, bytes] = {}
        self._news = asyncio.Event()
        self._database: Database | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._database = Database(self.store.database_path)  # its own connection: polling never waits for a request
        self.last = self._database.last_event_id()
        self._task = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        self.close()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._database is not None:
            self._database.close()

    def close(self) -> None:
        """End every stream. Called before the server waits for its connections."""
        self.closed = True
        self._wake()

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def _watch(self) -> None:
        while not self.closed:
            fresh = await self._read(self.last)
            if fresh:
                self._kept.extend(fresh)
                self.last = fresh[-1].id
                self._wake()
            if len(fresh) < _PAGE:
                await asyncio.sleep(self.poll)

    async def _read(self, after: int) -> list[Event]:
        database = self._database
        if database is None:
            raise RuntimeError("the hub was not started")
        return await asyncio.to_thread(database.events_after, after, limit=_PAGE)

    async def follow(self, after: int, heartbeat: float = 15.0) -> AsyncGenerator[list[Event], None]:
        """Every event with an id above `after`, in order, until the hub is closed.

        An empty list is a sign of life, after so many seconds in which nothing happened.
        """
        position = after
        while not self.closed:
            news, last = self._news, self.last
            if position < last:
                batch = await self._since(position)
                position = batch[-1].id if batch else last  # nothing: they went with their run
                if batch:
                    yield batch
                continue
            try:
                await asyncio.wait_for(news.wait(), heartbeat)
            except TimeoutError:
                yield []

    def written(self, event: Event, write: Callable[[Event], bytes]) -> bytes:
        """The event as it is sent, written once for all followers."""
        message = self._messages.get(event.id)
        if message is None:
            message = self._messages[event.id] = write(event)
            if len(self._messages) > _KEPT:
                del self._messages[next(iter(self._messages))]
        return message

    async def _since(self, position: int) -> list[Event]:
        if self._kept and self._kept[0].id <= position + 1:
            return [event for event in self._kept if event.id > position]
        return await self._read(position)
