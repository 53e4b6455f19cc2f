"""The real thing: a server, its real child processes, a tiny model trained, traced, projected and resumed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from moescope.store import Store
from moescope.trace.io import write_trace
from moescope_server.app import create_app
from moescope_server.settings import Settings
from synthetic import make_trace

TINY: dict[str, Any] = {
    "optim.steps": 40,
    "optim.batch": 16,
    "optim.warmup": 2,
    "data.tokens": 2000,
    "probe.tokens": 200,
    "snapshot_every": 20,
    "checkpoint_every": 10,
    "eval_every": 20,
}


@pytest.fixture
def client(store: Store, settings: Settings) -> Iterator[TestClient]:
    """The app with its job runner."""
    app = create_app(store, replace(settings, run_jobs=True))
    headers = {"authorization": f"Bearer {settings.token}"}
    with TestClient(app, base_url="http://localhost", headers=headers) as made:
        yield made


def until(what: Callable[[], Any], seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)
    return found


def ended(client: TestClient, job: str) -> Any:
    def over() -> Any:
        row = client.get(f"/api/jobs/{job}").json()
        return row if row["status"] not in ("queued", "running") else None

    return until(over)


def test_a_checkpoint_is_traced_over_data(client: TestClient, checkpoint: Path) -> None:
    opened = client.post("/api/checkpoints/open", json={"path": str(checkpoint)}).json()
    started = client.post("/api/traces", json={"checkpoint": opened["id"], "tokens": 800})
    assert started.status_code == 202
    job = ended(client, started.json()["job"])
    assert job["status"] == "done", job
    trace = client.get(f"/api/traces/{job['result']['trace']}").json()
    assert trace["checkpoint"] == opened["id"] and trace["origin"] == "recorded" and trace["kind"] == "patches"
    assert 0 < trace["tokens"] <= 800 and {label["name"] for label in trace["labels"]} >= {"class"}
    assert trace["self_check"] and all(check["passed"] for check in trace["self_check"])
    assert client.get(f"/api/checkpoints/{opened['id']}").json()["traces"] == [trace["id"]]
    assert client.get(f"/api/traces/{trace['id']}/image/0.png").status_code == 200
    refused = client.post("/api/traces", json={"checkpoint": opened["id"], "text": "some words"}).json()
    job = ended(client, refused["job"])  # by the same process, so that this is quick
    assert job["status"] == "failed" and "reads no text" in job["error"]


def test_a_run_is_watched_stopped_killed_resumed_and_deleted(client: TestClient, store: Store) -> None:
    steps = 100_000
    body = {"preset": "clusters", "set": {**TINY, "optim.steps": steps, "snapshot_every": 0}, "name": "Mine"}
    started = client.post("/api/runs", json=body)
    assert started.status_code == 202, started.text
    run, job = started.json()["run"], started.json()["job"]

    def step() -> int:
        return int(client.get(f"/api/runs/{run}").json()["step"])

    until(lambda: step() >= 12 and client.get(f"/api/jobs/{job}").json()["progress"])
    row = client.get(f"/api/jobs/{job}").json()
    assert (row["status"], row["stage"]) == ("running", "training") and 0 < row["progress"] < 1
    assert "is running" in client.delete(f"/api/runs/{run}").json()["detail"]
    assert "is running" in client.post(f"/api/runs/{run}/resume").json()["detail"]
    assert client.post(f"/api/runs/{run}/stop").status_code == 200
    assert ended(client, job)["status"] == "cancelled"
    stopped = client.get(f"/api/runs/{run}").json()
    assert stopped["status"] == "stopped" and stopped["checkpoints"][-1].endswith(f"-c{stopped['step']}")
    assert client.get(f"/api/checkpoints/{stopped['checkpoints'][-1]}").json()["problems"] == []

    job = client.post(f"/api/runs/{run}/resume").json()["job"]
    until(lambda: step() >= stopped["step"] + 12)
    os.kill(store.job(job).pid or 0, signal.SIGKILL)
    assert ended(client, job)["status"] == "failed"
    killed = client.get(f"/api/runs/{run}").json()
    assert killed["status"] == "failed" and "SIGKILL" in killed["error"]

    kinds = [event["kind"] for event in client.get(f"/api/runs/{run}/events").json()]
    assert kinds[0] == "run_started" and kinds.count("run_resumed") == 1 and kinds[-1] == "run_failed"
    losses = client.get(f"/api/runs/{run}/figures/loss").json()
    assert losses["layout"]["meta"]["total"] >= stopped["step"] + 12
    folder = store.run_folder(run)
    assert folder.is_dir() and client.delete(f"/api/runs/{run}").status_code == 204 and not folder.exists()
    assert client.get("/api/checkpoints").json() == [] and client.get("/api/traces").json() == []


def test_a_run_finishes_with_its_snapshots_as_traces(client: TestClient) -> None:
    started = client.post("/api/runs", json={"preset": "clusters", "set": TINY}).json()
    job = ended(client, started["job"])
    assert job["status"] == "done", job
    run = client.get(f"/api/runs/{started['run']}").json()
    assert (run["status"], run["step"], run["steps"], run["error"]) == ("finished", 40, 40, None)
    assert run["snapshots"] == [f"{run['id']}-s{step}" for step in (0, 20, 40)]
    assert run["checkpoints"] == [f"{run['id']}-c{step}" for step in (30, 40)]  # the newest two
    last = client.get(f"/api/traces/{run['snapshots'][-1]}").json()
    assert (last["run"], last["step"], last["kind"]) == (run["id"], 40, "vectors")
    assert client.get(f"/api/traces/{last['id']}/figures/token_map").status_code == 200
    assert "finished" in client.post(f"/api/runs/{run['id']}/resume").json()["detail"]


@pytest.mark.parametrize(
    ("set", "words"),
    [
        ({"optim.lr": -1}, "optim.lr|OptimConfig.lr"),
        ({"nonsense": 1}, "nonsense"),
        ({"model.router": "magic"}, "magic"),
    ],
)
def test_a_configuration_that_does_not_fit_starts_nothing(
    client: TestClient, store: Store, set: dict[str, Any], words: str
) -> None:
    answer = client.post("/api/runs", json={"preset": "clusters", "set": set})
    assert answer.status_code == 400
    assert any(word in answer.json()["detail"] for word in words.split("|")), answer.text
    assert store.runs() == [] and store.jobs() == []


def test_a_map_by_umap_comes_when_it_is_computed(client: TestClient, store: Store) -> None:
    id, path = store.new_trace_path("Map")
    write_trace(make_trace(tokens=400, docs=8, sample=200), path)
    store.add_trace(path, "Map", "recorded", id=id)
    address = f"/api/traces/{id}/figures/token_map?layer=1&method=umap"
    waiting = client.get(address)
    assert waiting.status_code == 202
    assert client.get(f"{address}&color=domain").json() == waiting.json()  # the same work is not begun twice
    job = ended(client, waiting.json()["job"])
    assert job["status"] == "done", job
    figure = client.get(address)
    assert figure.status_code == 200 and "UMAP" in figure.json()["layout"]["meta"]["caption"]
    assert client.get(f"/api/traces/{id}/figures/token_map?layer=1").content != figure.content
    without, path = store.new_trace_path("None")
    made = make_trace(tokens=400, docs=8)
    layers = {layer: replace(made.layers[layer], hidden_nd=None) for layer in made.layer_ids}
    write_trace(replace(made, sample=None, layers=layers), path)
    store.add_trace(path, "None", "recorded", id=without)
    for method in ("pca", "umap"):
        answer = client.get(f"/api/traces/{without}/figures/token_map?method={method}")
        assert answer.status_code == 400 and "kept no hidden vectors" in answer.json()["detail"]
