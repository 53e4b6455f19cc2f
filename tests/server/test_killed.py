"""Sudden death, of server and trainer: nothing is lost, nothing comes twice, and it is said what happened."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from moescope.figures.loss import current
from moescope.store import JobRow, Store
from moescope_server import jobs
from moescope_server.app import create_app
from moescope_server.jobs import JobRunner
from moescope_server.lock import sole_owner
from moescope_server.processes import this_process
from moescope_server.settings import Settings
from moescope_server.workers import Workers
from server.kill_server import trial

FAKE = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))


def until(what: Callable[[], Any], seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)
    return found


def test_twenty_readers_of_a_server_killed_ten_times_miss_nothing_and_double_nothing(home: Path) -> None:
    found = trial(home, kills=10, readers=20, between=0.3)
    assert all(reader.finished for reader in found.readers) and len(found.events) > 200
    assert [reader.heard == found.events for reader in found.readers] == [True] * 20
    assert found.events == sorted(set(found.events))
    assert min(reader.asked for reader in found.readers) >= 10  # each of them really was cut off


def test_a_killed_server_leaves_its_address_and_one_that_ended_does_not(store: Store) -> None:
    file = store.home / "server.lock"
    token = "t" * 32
    with sole_owner(store) as lock:
        assert (lock.port, lock.token) == (None, None)
        lock.note(7411, token)
        left = file.read_text()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600 and left.split() == [str(os.getpid()), "7411", token]
    assert file.read_text() == ""
    file.write_text(left)  # as a process that is killed leaves it
    file.chmod(0o644)
    with sole_owner(store) as lock:
        assert (lock.port, lock.token) == (7411, token) and stat.S_IMODE(file.stat().st_mode) == 0o600
    for damaged in ("12\n", "x y z", f"1\n99999\n{token}\n", "1\n7411\nshort\n", left * 3):
        file.write_text(damaged)
        with sole_owner(store) as lock:
            assert (lock.port, lock.token) == (None, None)


def test_the_address_of_a_killed_server_is_good_again_when_it_is_restarted(home: Path) -> None:
    command = [sys.executable, "-m", "moescope_server", "serve", "--home", str(home), "--no-browser"]
    addresses = []
    for ending in (signal.SIGKILL, signal.SIGTERM, signal.SIGTERM):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        addresses.append(process.stdout.readline())
        base, token = addresses[-1].split()[-1].split("/?token=")
        asked = urllib.request.Request(f"{base}/api/info", headers={"authorization": f"Bearer {token}"})
        urllib.request.urlopen(asked, timeout=60).close()
        process.send_signal(ending)
        process.communicate(timeout=60)
    assert addresses[0].startswith("moescope is at http://127.0.0.1:")
    assert addresses[1] == addresses[0] != addresses[2]


def test_a_job_whose_server_was_killed_while_starting_it_is_started_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_STARTING", 0.3)
    row = store.add_job("train", {"run": "none"})
    store.database.update(JobRow, row.id, status="running", stage="starting")  # and no process ever said that it is it
    runner = JobRunner(store, Workers(store, FAKE))
    runner.start()
    until(lambda: store.job(row.id).status == "done", 20)
    assert store.job(row.id).pid not in (None, os.getpid())
    runner.stop()


def test_a_job_is_done_by_the_process_it_was_given_to_and_by_no_other(store: Store) -> None:
    row = store.add_job("train", {"run": "none"})
    store.database.update(JobRow, row.id, status="running", **this_process())
    late = subprocess.run([*FAKE, str(store.home), str(store.samples), row.id], timeout=60)
    assert late.returncode == 1 and store.job(row.id).pid == os.getpid() and store.job(row.id).status == "running"


SET: dict[str, Any] = {
    "model.max_experts": 10,
    "optim.steps": 100_000,
    "optim.batch": 16,
    "optim.warmup": 2,
    "data.tokens": 2000,
    "probe.tokens": 200,
    "threads": 1,
    "log_every": 5,
    "eval_every": 0,
    "snapshot_every": 0,
    "checkpoint_every": 0,
}


@contextmanager
def serving(store: Store) -> Iterator[TestClient]:
    """A server with its job runner; leaving it is like its death: jobs go on."""
    settings = Settings(poll=0.05)
    app = create_app(store, replace(settings, run_jobs=True))
    with TestClient(app, base_url="http://localhost", headers={"authorization": f"Bearer {settings.token}"}) as made:
        yield made


def test_a_trainer_killed_while_no_server_ran_is_found_and_goes_on_with_what_was_ordered(store: Store) -> None:
    def status(client: TestClient, run: str) -> str:
        return str(client.get(f"/api/runs/{run}").json()["status"])

    def order(client: TestClient, **body: Any) -> Any:
        id = client.post(f"/api/runs/{run}/orders", json=body).json()["order"]
        told = until(lambda: [e for e in store.events_after(0, run, ["order"]) if e.payload["id"] == id])
        return told[0].payload

    with serving(store) as client:
        body = {"preset": "clusters", "set": SET}
        started = client.post("/api/runs", json=body).json()
        run, job = started["run"], started["job"]
        other = client.post("/api/runs", json={**body, "set": {**SET, "optim.steps": 5}}).json()
        until(lambda: store.run(run).step >= 10)
        assert order(client, kind="pause")["done"]
        until(lambda: status(client, run) == "paused")
        step = store.run(run).step
        assert store.job(job).stage == "paused"
        refused = order(client, kind="split", layer=0, expert=99)
        assert not refused["done"] and refused["why"]
        assert order(client, kind="split", layer=0, expert=1)["done"]  # while it is paused
        assert store.run(run).step == step and status(client, run) == "paused"
        waits = client.get(f"/api/runs/{other['run']}").json()
        assert (waits["status"], waits["ahead"]) == ("queued", 1)  # a paused run holds its place
        assert client.post(f"/api/runs/{other['run']}/stop").json()["status"] == "stopped"
    os.kill(store.job(job).pid or 0, signal.SIGKILL)
    time.sleep(0.5)
    assert store.run(run).status == "paused"  # nobody could say otherwise
    began = time.monotonic()
    with serving(store) as client:
        until(lambda: status(client, run) == "failed", 20)
        assert time.monotonic() - began < 15
        dead = client.get(f"/api/runs/{run}").json()
        assert dead["orphan"] and dead["error"].count(".") >= 1 and "\n" not in dead["error"] and dead["checkpoints"]
        resumed = client.post(f"/api/runs/{run}/resume").json()
        until(lambda: store.run(run).step >= step + 10)
        alive = client.get(f"/api/runs/{run}").json()
        assert (alive["status"], alive["orphan"], alive["error"]) == ("running", False, None)
        events = store.events_after(0, run)
        assert [e.payload["from_step"] for e in events if e.kind == "run_resumed"] == [step]
        assert [e.payload["child"] for e in events if e.kind == "expansion"] == [8]  # split once
        assert len({e.payload["id"] for e in events if e.kind == "order"}) == 3 and store.orders.open(run) == []
        assert order(client, kind="checkpoint")["done"]
        assert order(client, kind="pause")["done"]
        assert client.post(f"/api/runs/{run}/stop").status_code == 200  # a paused run can be stopped
        until(lambda: store.job(resumed["job"]).status == "cancelled")
        stopped = client.get(f"/api/runs/{run}").json()
        assert stopped["status"] == "stopped"
        steps = [e.step for e in current(store.events_after(0, run), "train")]
        assert steps == sorted(set(steps)) and steps[-1] <= stopped["step"]

        fork = {"fork": stopped["checkpoints"][-1], "set": {"optim.lr": 1e-4, "optim.steps": stopped["step"] + 20}}
        forked = client.post("/api/runs", json=fork).json()
        until(lambda: store.job(forked["job"]).status in ("done", "failed"))
        made = client.get(f"/api/runs/{forked['run']}").json()
        assert (made["status"], made["step"]) == ("finished", stopped["step"] + 20), made["error"]
        assert made["fork"] == {"run": run, "checkpoint": fork["fork"], "step": stopped["step"]}
        assert not (store.run_folder(forked["run"]) / "forked").exists()  # it has checkpoints of its own
        first = store.events_after(0, forked["run"])[0]
        assert (first.kind, first.step, first.payload["forked"]) == ("run_started", stopped["step"], made["fork"])
