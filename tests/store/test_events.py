"""Laws of the event log: order, resume from anywhere, several processes, sudden death."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from moescope.events import Event
from moescope.store import NotFoundError, Store


@pytest.fixture
def store(home: Path, tmp_path: Path) -> Store:
    (tmp_path / "samples").mkdir()
    return Store(home, samples=tmp_path / "samples")


def events(count: int, run: str = "r", kind: str = "train") -> list[Event]:
    return [Event(run=run, step=step, kind=kind, payload={"loss": float(step)}) for step in range(count)]


def test_events_come_back_as_they_went_in_with_growing_ids(store: Store) -> None:
    stored = [store.append(event) for event in events(5)] + store.append_many(events(5, run="other"))
    assert [event.id for event in stored] == sorted({event.id for event in stored})
    assert store.events_after(0) == stored
    assert store.last_event_id() == stored[-1].id
    assert all(event.time > 1e9 for event in stored)


def test_a_reader_resumes_from_any_id_and_filters(store: Store) -> None:
    stored = store.append_many([*events(20), *events(20, run="other"), *events(20, kind="load")])
    for position in (0, stored[0].id, stored[30].id, stored[-1].id):
        assert store.events_after(position) == [event for event in stored if event.id > position]
    some = store.events_after(stored[3].id, "r", ["load"], 7)
    assert some == [event for event in stored if event.kind == "load"][:7]
    assert store.events_after(0, "nobody") == []


def test_payloads_survive_even_where_json_has_no_word_for_them(store: Store) -> None:
    store.append(Event(run="r", step=1, kind="train", payload={"loss": float("inf"), "text": "\u2028é\0", "n": None}))
    assert store.events_after(0)[0].payload == {"loss": float("inf"), "text": "\u2028é\0", "n": None}


def test_a_batch_is_appended_whole_or_not_at_all(store: Store) -> None:
    with pytest.raises(TypeError):
        store.append_many([*events(3), Event(run="r", step=9, kind="train", payload={"loss": object()})])
    assert store.events_after(0) == []


def test_a_kind_that_nobody_documented_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown event kind 'surprise'"):
        Event(run="r", step=0, kind="surprise")


def test_a_run_follows_its_events(store: Store) -> None:
    run = store.add_run("A run", "preset", {"a": 1}, steps=10)
    assert (run.status, run.step) == ("queued", 0)
    expected = [
        ("run_started", 0, {}, "running", None),
        ("train", 3, {}, "running", None),
        ("run_failed", 3, {"error": "It broke."}, "failed", "It broke."),
        ("run_resumed", 2, {"from_step": 2}, "running", None),
        ("train", 10, {}, "running", None),
        ("run_finished", 10, {}, "finished", None),
    ]
    for kind, step, payload, status, error in expected:
        store.append(Event(run=run.id, step=step, kind=kind, payload=payload))
        row = store.run(run.id)
        assert (row.status, row.step, row.error) == (status, step, error), kind


APPENDER = textwrap.dedent("""
    import sys
    from pathlib import Path
    from moescope.events import Event
    from moescope.store import Store
    store = Store(Path(sys.argv[1]), samples=Path(sys.argv[2]))
    print("ready", flush=True)
    sys.stdin.readline()
    for step in range(int(sys.argv[4])):
        store.append(Event(run=sys.argv[3], step=step, kind="train", payload={"loss": step}))
        if step == 200:
            print("half", flush=True)
""")


def appender(store: Store, run: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", APPENDER, str(store.home), str(store.samples), run, str(count)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_two_processes_append_at_once_and_a_reader_loses_and_doubles_nothing(store: Store) -> None:
    writers = [appender(store, name, 300) for name in ("one", "two")]
    for writer in writers:
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    seen: list[Event] = []
    while len(seen) < 600:
        seen += store.events_after(seen[-1].id if seen else 0, limit=50)
        assert all(writer.poll() in (None, 0) for writer in writers)
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    assert [event.id for event in seen] == sorted({event.id for event in seen})
    for name in ("one", "two"):
        assert [event.step for event in seen if event.run == name] == list(range(300))
    assert store.events_after(seen[-1].id) == []


def test_a_killed_writer_loses_nothing_it_committed_and_the_log_stays_whole(store: Store) -> None:
    writer = appender(store, "r", 100_000)
    assert writer.stdin is not None and writer.stdout is not None
    writer.stdout.readline()
    writer.stdin.write("go\n")
    writer.stdin.flush()
    assert writer.stdout.readline() == "half\n"
    before = len(store.events_after(0))
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    steps = [event.step for event in store.events_after(0)]
    assert len(steps) >= max(before, 201)
    assert steps == list(range(len(steps)))
    assert store.append(Event(run="r", step=0, kind="train")).id > 200
    again = Store(store.home, samples=store.samples)
    assert again.database._select("PRAGMA integrity_check")[0][0] == "ok"
    again.close()


def test_ids_are_never_used_again_even_after_a_run_was_deleted(store: Store) -> None:
    run = store.add_run("A run", "preset", {})
    last = store.append(Event(run=run.id, step=0, kind="run_failed", payload={"error": "x"})).id
    store.delete_run(run.id)
    assert store.events_after(0) == []
    assert store.append(events(1)[0]).id > last
    with pytest.raises(NotFoundError):
        store.run(run.id)
