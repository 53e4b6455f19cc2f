"""The life of a job: it waits, runs in a process of its own, and ends; and whatever happens to it, someone says so."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from moescope.store import JobRow, Store
from moescope_server import jobs
from moescope_server.jobs import JobRunner, begin_here, change_job
from moescope_server.processes import same_process, start_time
from moescope_server.workers import Workers

FAKE = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))


def runner(store: Store) -> JobRunner:
    made = JobRunner(store, Workers(store, FAKE))
    made.start()
    return made


@pytest.fixture
def running(store: Store) -> Iterator[JobRunner]:
    made = runner(store)
    yield made
    for row in store.jobs(status=["queued", "running"]):
        made.cancel(row.id)
    until(lambda: not store.jobs(status=["queued", "running"]))
    made.stop()


def until(what: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def ended(store: Store, id: str) -> JobRow:
    until(lambda: not store.job(id).active)
    return store.job(id)


def told(store: Store, id: str) -> list[str]:
    """The statuses that followers of the log heard of, repeats left out."""
    heard = [str(event.payload["status"]) for event in store.events_after(0, "", ["job"]) if event.payload["id"] == id]
    return [status for index, status in enumerate(heard) if index == 0 or heard[index - 1] != status]


def test_a_job_runs_and_everyone_who_follows_hears_of_it(store: Store, running: JobRunner) -> None:
    row = ended(store, running.submit("trace", {"seconds": 0.1}).id)
    assert (row.status, row.error, row.progress) == ("done", None, 1.0)
    assert row.result is not None and row.result["pid"] == row.pid != os.getpid()
    assert told(store, row.id) == ["queued", "running", "done"]
    assert any(event.payload["stage"] == "working" for event in store.events_after(0, "", ["job"]))


@pytest.mark.parametrize(
    ("action", "error"),
    [
        ("input error", "The data is upside down."),
        ("crash", "RuntimeError: It broke"),
        ("die", "The process ended in the stage 'working' without finishing: a last word"),
        ("kill", "The process was killed by SIGKILL in the stage 'working'; the system may have run out of memory."),
    ],
)
def test_a_job_that_fails_says_why(store: Store, running: JobRunner, action: str, error: str) -> None:
    row = ended(store, running.submit("trace", {"do": action}).id)
    assert row.status == "failed" and row.error is not None and row.error.rstrip(".") == error.rstrip(".")
    assert told(store, row.id)[-1] == "failed"
    again = ended(store, running.submit("trace", {}).id)
    assert again.status == "done"


def test_a_run_fails_with_its_killed_process_and_stops_with_a_cancelled_one(store: Store, running: JobRunner) -> None:
    run = store.add_run("A run", "preset", {})
    row = running.submit("train", {"run": run.id, "seconds": 60})
    until(lambda: store.job(row.id).stage == "working")
    os.kill(store.job(row.id).pid or 0, signal.SIGKILL)
    assert ended(store, row.id).status == "failed"
    assert store.run(run.id).status == "failed"
    assert "SIGKILL" in (store.run(run.id).error or "")
    other = store.add_run("A run", "preset", {})
    row = running.submit("train", {"run": other.id, "seconds": 60})
    until(lambda: store.job(row.id).stage == "working")
    assert running.cancel(row.id).status == "running"
    assert ended(store, row.id).status == "cancelled"
    stopped = store.run(other.id)
    assert (stopped.status, stopped.step, stopped.error) == ("stopped", 7, None)


def test_cancelling_ends_a_job_at_once_or_by_force(
    store: Store, running: JobRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = running.submit("trace", {"seconds": 60})
    until(lambda: store.job(row.id).stage == "working")
    began = time.monotonic()
    running.cancel(row.id)
    assert ended(store, row.id).status == "cancelled" and time.monotonic() - began < 5
    monkeypatch.setitem(jobs.GRACE, "trace", 0.3)
    row = running.submit("trace", {"seconds": 60, "do": "deaf"})
    until(lambda: store.job(row.id).stage == "working")
    running.cancel(row.id)
    assert ended(store, row.id).status == "cancelled"
    assert running.cancel(row.id).status == "cancelled"


def test_one_of_a_lane_at_a_time_and_a_waiting_one_can_be_cancelled(store: Store, running: JobRunner) -> None:
    run = store.add_run("A run", "preset", {})
    first = running.submit("trace", {"seconds": 60})
    until(lambda: store.job(first.id).stage == "working")
    second, third = running.submit("project", {}), running.submit("trace", {})
    train = running.submit("train", {"run": run.id})
    assert ended(store, train.id).status == "done"  # another lane
    assert [store.job(row.id).status for row in (second, third)] == ["queued", "queued"]
    assert running.cancel(second.id).status == "cancelled"
    running.cancel(first.id)
    assert ended(store, third.id).status == "done"
    assert store.job(second.id).pid is None


def test_a_waiting_run_that_is_cancelled_is_stopped(store: Store) -> None:
    idle = JobRunner(store)
    run = store.add_run("A run", "preset", {})
    row = idle.submit("train", {"run": run.id})
    assert idle.cancel(row.id).status == "cancelled"
    assert store.run(run.id).status == "stopped"


def test_the_same_work_is_not_begun_twice(store: Store) -> None:
    idle = JobRunner(store)
    first = idle.submit_once("project", {"trace": "a", "layer": 1})
    assert idle.submit_once("project", {"trace": "a", "layer": 1}).id == first.id
    assert idle.submit_once("project", {"trace": "a", "layer": 2}).id != first.id
    idle.cancel(first.id)
    assert idle.submit_once("project", {"trace": "a", "layer": 1}).id != first.id


def test_projections_share_a_warm_process_that_outlives_a_cancel(store: Store, running: JobRunner) -> None:
    first, second = (ended(store, running.submit("project", {}).id) for _ in range(2))
    assert first.status == second.status == "done"
    assert first.pid == second.pid is not None
    row = running.submit("project", {"seconds": 60})
    until(lambda: store.job(row.id).stage == "working")
    running.cancel(row.id)
    assert ended(store, row.id).status == "cancelled"
    assert ended(store, running.submit("project", {}).id).pid == first.pid
    dead = ended(store, running.submit("project", {"do": "die"}).id)
    assert dead.status == "failed" and "a last word" in (dead.error or "")
    last = ended(store, running.submit("project", {}).id)
    assert last.status == "done" and last.pid != first.pid
    assert last.pid is not None and start_time(last.pid) is not None
    running.stop()
    until(lambda: start_time(last.pid or 0) is None)


def test_a_job_survives_its_server_and_the_next_one_takes_it_over(store: Store) -> None:
    old = runner(store)
    row = old.submit("trace", {"seconds": 1.5})
    until(lambda: store.job(row.id).stage == "working")
    old.stop()
    new = runner(store)
    assert ended(store, row.id).status == "done"
    row = new.submit("trace", {"seconds": 60})
    until(lambda: store.job(row.id).stage == "working")
    new.stop()
    newest = runner(store)
    newest.cancel(row.id)
    assert ended(store, row.id).status == "cancelled"
    newest.stop()


def test_a_job_that_died_while_no_server_watched_is_found_at_the_next_start(store: Store) -> None:
    run = store.add_run("A run", "preset", {})
    row = store.add_job("train", {"run": run.id})
    change_job(store, row.id, status="running", stage="training", pid=os.getpid(), pid_start="another process's")
    store.job_log(row.id).write_text("Traceback\nMemoryError: too much\n")
    waiting = store.add_job("trace", {})
    new = runner(store)
    assert ended(store, row.id).status == "failed"
    assert "MemoryError: too much" in (store.job(row.id).error or "")
    assert store.run(run.id).status == "failed"
    assert ended(store, waiting.id).status == "done"
    new.stop()


def test_a_job_in_the_foreground_is_left_alone_while_its_process_lives(store: Store, running: JobRunner) -> None:
    row = begin_here(store, "train", {})
    time.sleep(0.6)
    assert store.job(row.id).status == "running"
    change_job(store, row.id, status="done")


def test_a_process_is_told_from_another_with_its_number() -> None:
    started = start_time(os.getpid())
    assert started is not None and same_process(os.getpid(), started)
    assert not same_process(os.getpid(), started + "0")
    assert not same_process(None, None) and start_time(2**22 + 12345) is None
