"""The event stream over a real connection: nothing lost, nothing doubled, and the server still stops."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest

from moescope.events import Event
from moescope.store import Store
from moescope_server import hub

Message = dict[str, str]


@contextmanager
def stream(running: Any, query: str = "", **headers: str) -> Iterator[Iterator[Message]]:
    """Messages of one connection, as a browser's EventSource would read them."""
    with httpx2.stream(
        "GET", f"{running.address}/api/events{query}", headers=running.headers | headers, timeout=15
    ) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield messages(answer)


def messages(answer: httpx2.Response) -> Iterator[Message]:
    fields: Message = {}
    for line in answer.iter_lines():
        if not line and fields:
            yield fields
            fields = {}
        elif line and not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = value


def put(store: Store, count: int, run: str = "r") -> list[int]:
    batch = [Event(run=run, step=step, kind="train", payload={"loss": step / 2}) for step in range(count)]
    return [event.id for event in store.append_many(batch)]


def take(source: Iterator[Message], count: int) -> list[int]:
    return [int(next(source)["id"]) for _ in range(count)]


def test_a_stream_begins_where_it_says_and_follows(running: Any, store: Store) -> None:
    put(store, 5)
    last = put(store, 1)[0]
    time.sleep(0.2)
    with stream(running) as source:
        ready = next(source)
        assert (ready["event"], ready["id"]) == ("ready", str(last))
        assert json.loads(ready["data"]) == {"after": last}
        store.append(Event(run="r", step=3, kind="eval", payload={"loss": float("nan"), "text": "a\nb"}))
        message = next(source)
        assert message["event"] == "eval" and int(message["id"]) == last + 1
        event = json.loads(message["data"])
        assert (event["run"], event["step"], event["kind"], event["id"]) == ("r", 3, "eval", last + 1)
        assert event["payload"] == {"loss": None, "text": "a\nb"} and event["time"] > 1e9


def test_it_resumes_from_any_place_with_after_or_last_event_id(running: Any, store: Store) -> None:
    ids = put(store, 30)
    for position in (0, ids[0], ids[17], ids[-2]):
        rest = [id for id in ids if id > position]
        with stream(running, f"?after={position}") as source:
            assert next(source)["event"] == "ready" and take(source, len(rest)) == rest
        # the header wins: a browser that reconnects sends both
        with stream(running, "?after=0", **{"last-event-id": str(position)}) as source:
            assert next(source)["id"] == str(position) and take(source, len(rest)) == rest


def test_reconnecting_again_and_again_loses_and_doubles_nothing(running: Any, store: Store) -> None:
    writer = threading.Thread(target=lambda: [(put(store, 2), time.sleep(0.002)) for _ in range(200)])
    writer.start()
    seen: list[int] = []
    while len(seen) < 400:
        with stream(running, "?after=0", **({"last-event-id": str(seen[-1])} if seen else {})) as source:
            next(source)
            seen += take(source, min(37, 400 - len(seen)))
    writer.join()
    assert seen == sorted(set(seen)) == [event.id for event in store.events_after(0)]


def test_followers_behind_what_is_kept_read_the_rest_from_the_log(
    running: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "_PAGE", 64)
    ids = put(store, 5000)  # more than the hub keeps
    with stream(running, "?after=0") as source:
        next(source)
        assert take(source, 2500) == ids[:2500]
        more = put(store, 100)
        assert take(source, 2600) == ids[2500:] + more


def test_many_followers_hear_the_same(running: Any, store: Store) -> None:
    """20 browsers, 50 events a second: each event reaches each of them, in order."""
    heard: list[list[int]] = [[] for _ in range(20)]
    ready = threading.Barrier(21)

    def follow(mine: list[int]) -> None:
        with stream(running) as source:
            next(source)
            ready.wait()
            for message in source:
                mine.append(int(message["id"]))
                if len(mine) == 100:
                    return

    followers = [threading.Thread(target=follow, args=(mine,)) for mine in heard]
    for follower in followers:
        follower.start()
    ready.wait()
    ids = []
    for step in range(100):
        ids.append(store.append(Event(run="r", step=step, kind="train", payload={"loss": 1.0})).id)
        time.sleep(0.02)
    for follower in followers:
        follower.join(20)
    assert all(mine == ids for mine in heard)


def test_the_server_stops_with_streams_open_and_ends_them(running: Any, store: Store) -> None:
    put(store, 1)
    ended = threading.Event()

    def follow() -> None:
        with stream(running) as source:
            for _ in source:
                pass
        ended.set()

    follower = threading.Thread(target=follow)
    follower.start()
    time.sleep(0.3)
    began = time.monotonic()
    running.stop()
    assert not running.thread.is_alive() and time.monotonic() - began < 4
    assert ended.wait(2)
    follower.join()


def test_events_that_went_with_their_run_leave_no_gap_to_fall_into(running: Any, store: Store) -> None:
    first = put(store, 2)
    run = store.add_run("A run", "preset", {})
    put(store, 3, run.id)
    store.append(Event(run=run.id, step=3, kind="run_failed", payload={"error": "x"}))
    store.delete_run(run.id)
    time.sleep(0.2)
    with stream(running, f"?after={first[0]}") as source:
        assert next(source)["event"] == "ready" and take(source, 1) == first[1:]
        later = put(store, 1)
        while (id := take(source, 1)) != later:  # those still kept may come first
            assert first[1] < id[0] < later[0]


def test_silence_is_broken_by_a_sign_of_life(store: Store) -> None:
    async def signs() -> list[list[Event]]:
        watched = hub.EventHub(store, poll=0.01)
        await watched.start()
        try:
            source = watched.follow(0, heartbeat=0.05)
            found = [await anext(source)]
            put(store, 1)
            found.append(await anext(source))
            await source.aclose()
            return found
        finally:
            await watched.stop()

    silence, event = asyncio.run(signs())
    assert silence == [] and len(event) == 1


def test_a_follower_of_events_that_are_gone_waits_for_the_next(store: Store) -> None:
    async def found() -> list[list[Event]]:
        put(store, 5, "doomed")
        watched = hub.EventHub(store, poll=0.01)
        await watched.start()
        store.database.delete_events("doomed")
        try:
            source = watched.follow(0, heartbeat=0.05)
            batches = [await anext(source)]
            put(store, 1)
            batches.append(await anext(source))
            await source.aclose()
            return batches
        finally:
            await watched.stop()

    silence, news = asyncio.run(found())
    assert silence == [] and [event.run for event in news] == ["r"]


def test_leaving_in_the_middle_troubles_nobody(
    running: Any, store: Store, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    ids = put(store, 3000)
    for _ in range(5):
        with stream(running, "?after=0") as source:
            next(source)
            take(source, 10)
    with stream(running, "?after=0") as source:
        next(source)
        assert take(source, 3000) == ids
    assert "Error" not in capfd.readouterr().err and not caplog.records


def test_a_stream_needs_the_token(running: Any) -> None:
    assert httpx2.get(f"{running.address}/api/events").status_code == 401


def test_a_place_that_is_none_is_refused_or_ignored(running: Any, store: Store) -> None:
    assert httpx2.get(f"{running.address}/api/events?after=-1", headers=running.headers).status_code == 422
    last = put(store, 3)[-1]
    time.sleep(0.2)
    with stream(running, **{"last-event-id": "nonsense"}) as source:
        assert next(source)["id"] == str(last)


@pytest.mark.parametrize("place", ["9" * 30, "9" * 5000, "10000"])
def test_a_place_beyond_the_end_of_the_log_is_its_end(running: Any, store: Store, place: str) -> None:
    last = put(store, 3)[-1]
    time.sleep(0.2)
    with stream(running, **{"last-event-id": place}) as source:
        assert next(source)["id"] == str(last)
        later = put(store, 2)
        assert take(source, 2) == later
