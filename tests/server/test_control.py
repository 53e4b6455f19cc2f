"""Control of a run: orders are taken in order and once, forks keep their checkpoint, runs wait in line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from moescope.errors import InputError
from moescope.events import Event
from moescope.store import CheckpointRow, JobRow, RunRow, Store
from moescope_server.deps import Services
from moescope_server.jobs import JobRunner, begin_here, change_job
from moescope_server.starting import create_run, forked, plan_run
from moescope_server.training import follow

STEPS = 6


class Killed(BaseException):
    """Stands for a death of the process: nothing after it is carried out."""


@dataclass
class FakeTrainer:
    """`train` as far as `follow` can see: takes orders before every step, and may die or ask for more on the way."""

    before: Callable[[int], None] = lambda step: None
    die_on: str | None = None
    heard: list[str] = field(default_factory=list)
    begun: list[dict[str, Any]] = field(default_factory=list)

    def __call__(
        self,
        config: Any,
        folder: Path,
        *,
        resume: Path | None = None,
        fork: Path | None = None,
        stop: Callable[[], bool],
        orders: Callable[[], list[Any]],
        progress: Callable[[str], None],
    ) -> Iterator[Event]:
        self.begun.append({"resume": resume, "fork": fork})

        def event(step: int, kind: str, **payload: Any) -> Event:
            return Event(run=folder.name, step=step, kind=kind, payload=payload)

        yield event(0, "run_resumed", from_step=0) if resume else event(0, "run_started")
        for step in range(1, STEPS + 1):
            self.before(step)
            for order in orders():
                self.heard.append(order.id)
                if order.kind == "split":
                    yield event(step, "expansion", layer=order.layer, parent=order.expert, why="by hand")
                if self.die_on == order.kind:
                    raise Killed
                yield event(step, "order", id=order.id, order=order.kind, done=True)
            if stop():
                yield event(step, "run_stopped", path=None)
                return
            yield event(step, "train", loss=1.0 / step)
        yield event(STEPS, "run_finished", loss=0.1)


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> FakeTrainer:
    import moescope.train.loop

    made = FakeTrainer()
    monkeypatch.setattr(moescope.train.loop, "train", made)
    return made


@pytest.fixture
def run(store: Store) -> RunRow:
    made = create_run(store, plan_run(store, "clusters", {"optim.steps": STEPS, "optim.warmup": 1}), "A run")
    store.database.update(RunRow, made.id, job="train-1", status="running")
    return store.run(made.id)


def go(store: Store, run: RunRow, *, resume: bool = False) -> dict[str, Any]:
    return follow(store, store.run(run.id), resume=resume, stop=lambda: False, report=lambda *_: None)


def answers(store: Store, run: RunRow) -> list[tuple[str, bool]]:
    return [(e.payload["id"], e.payload["done"]) for e in store.events_after(0, run.id, ["order"])]


def test_orders_are_taken_in_order_and_each_is_answered_once(store: Store, run: RunRow, trainer: FakeTrainer) -> None:
    given: list[str] = []

    def more(step: int) -> None:
        given.extend(store.orders.add(store.run(run.id), kind).id for kind in ("checkpoint", "checkpoint")[: step % 3])

    trainer.before = more
    assert go(store, run)["finished"]
    assert len(given) == 6 and trainer.heard == given and answers(store, run) == [(id, True) for id in given]
    assert store.orders.open(run.id) == []


def test_an_order_is_taken_again_only_if_the_trainer_died_before_its_answer(
    store: Store, run: RunRow, trainer: FakeTrainer
) -> None:
    given = [store.orders.add(run, "checkpoint"), store.orders.add(run, "split", 1, 0), store.orders.add(run, "pause")]
    trainer.die_on = "split"
    with pytest.raises(Killed):
        go(store, run)
    assert answers(store, run) == [(given[0].id, True)]
    assert store.events_after(0, run.id, ["expansion"]) == []  # it comes with the answer
    trainer.die_on = None
    assert go(store, run, resume=True)["finished"]
    assert trainer.heard == [row.id for row in (*given[:2], *given[1:])]
    assert answers(store, run) == [(row.id, True) for row in given]
    assert len(store.events_after(0, run.id, ["expansion"])) == 1


def test_an_order_that_comes_too_late_is_refused_in_the_same_breath(
    store: Store, run: RunRow, trainer: FakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[str] = []
    append = store.append

    def late(event: Event) -> Event:
        if event.kind == "train" and event.step == STEPS:
            given.append(store.orders.add(store.run(run.id), "pause").id)
        return append(event)

    monkeypatch.setattr(store, "append", late)
    go(store, run)
    assert answers(store, run) == [(given[0], False)] and store.orders.open(run.id) == []
    assert [event.kind for event in store.events_after(0, run.id)][-2:] == ["order", "run_finished"]
    with pytest.raises(InputError, match="is finished: only a run in training"):
        store.orders.add(store.run(run.id), "pause")


def test_a_run_without_a_checkpoint_begins_again_and_readers_forget_what_it_said(
    store: Store, run: RunRow, trainer: FakeTrainer
) -> None:
    from moescope.figures.loss import current

    store.orders.add(run, "pause")
    trainer.before = lambda step: (_ for _ in ()).throw(Killed()) if step == 4 else None
    with pytest.raises(Killed):
        go(store, run)
    assert store.run(run.id).step == 3
    trainer.before = lambda step: None
    assert go(store, run, resume=True)["finished"]
    assert trainer.begun == [{"resume": None, "fork": None}] * 2
    events = store.events_after(0, run.id)
    assert [event.step for event in current(events, "train")] == list(range(1, STEPS + 1))
    again = [event.kind for event in events].index("run_resumed")
    assert [event.kind for event in events[again : again + 2]] == ["run_resumed", "run_started"]


@pytest.fixture
def source(store: Store, run: RunRow) -> CheckpointRow:
    """A real checkpoint of `run` at step 4, as the loop writes it."""
    from moescope.config import dump
    from moescope.model.checkpoint import save_checkpoint
    from moescope.train.beginning import new_model
    from moescope.train.config import parse_run_config
    from moescope.train.prepare import prepare

    config = parse_run_config({**run.config, "data": {**run.config["data"], "tokens": 500}})
    data = prepare(config, None, lambda stage: None)
    folder = store.run_folder(run.id) / "checkpoints" / "step-000004"
    plain = {"version": 1, "step": 4, "tokens": 9, "seconds": 1.0, "loss": 1.0, "eval_loss": None, "threads": 1}

    def extra(staging: Path) -> None:
        (staging / "run.json").write_text(json.dumps({**plain, "data": data.fingerprint, "config": dump(config)}))
        (staging / "optimizer.safetensors").write_bytes(b"moments")

    save_checkpoint(folder, new_model(config, data), None, {"run": run.id}, extra=extra)
    store.database.update(RunRow, run.id, status="stopped", config=dump(config))
    return store.add_checkpoint(folder, "At 4", "run", id=f"{run.id}-c4", run=run.id, step=4)


def test_a_fork_has_the_settings_of_its_run_unless_told_otherwise(
    store: Store, run: RunRow, source: CheckpointRow
) -> None:
    wanted = plan_run(store, None, {"optim.lr": 0.5}, source.id)
    assert (wanted.config.optim.lr, wanted.config.data.tokens, wanted.preset) == (0.5, 500, "clusters")
    assert wanted.title == "A run, from step 4" and wanted.fork == source
    assert plan_run(store, None, {}, run.id).fork == source  # the newest of the run
    from_preset = plan_run(store, "clusters", {"optim.steps": 50}, source.id)
    assert from_preset.config.data.tokens != 500 and from_preset.config.optim.steps == 50
    for set, words in (
        ({"optim.steps": 4}, "step 4"),
        ({"model.num_experts": 6}, "model.num_experts"),
        ({"x": 1}, "x"),
    ):
        with pytest.raises(InputError, match=words):
            plan_run(store, None, set, source.id)
    with pytest.raises(InputError, match="no checkpoint and no run 'nothing'"):
        plan_run(store, None, {}, "nothing")
    with pytest.raises(InputError, match="Give a preset"):
        plan_run(store, None, {})


def test_a_fork_keeps_its_checkpoint_when_the_other_run_prunes_or_is_deleted(
    store: Store, run: RunRow, source: CheckpointRow, trainer: FakeTrainer
) -> None:
    made = create_run(store, plan_run(store, None, {}, source.id), None)
    assert made.fork == {"run": run.id, "checkpoint": source.id, "step": 4}
    names = {path.name for path in Path(source.path).iterdir()}
    store.delete_run(run.id)
    kept = forked(store.run_folder(made.id))
    assert kept is not None and kept.name == "step-000004" and {path.name for path in kept.iterdir()} == names
    assert (kept / "optimizer.safetensors").read_bytes() == b"moments"
    go(store, made)
    assert trainer.begun == [{"resume": None, "fork": kept}]
    started = store.events_after(0, made.id, ["run_started"])[0]
    assert started.payload["forked"] == made.fork
    store.delete_run(made.id)
    assert not kept.exists()


def test_a_checkpoint_that_has_just_gone_is_one_sentence_and_leaves_nothing(
    store: Store, run: RunRow, source: CheckpointRow
) -> None:
    import shutil

    wanted = plan_run(store, None, {}, source.id)
    shutil.rmtree(source.path)
    with pytest.raises(InputError, match="has just been replaced"):
        create_run(store, wanted, None)
    assert [row.id for row in store.runs()] == [run.id]


@pytest.fixture
def waiting(app: FastAPI) -> JobRunner:
    """The app's own runner, which starts nothing here."""
    services: Services = app.state.services
    return services.jobs


def test_runs_wait_in_line_behind_whatever_trains_or_sweeps(
    client: TestClient, store: Store, waiting: JobRunner
) -> None:
    busy = begin_here(store, "sweep", {})
    waiting.submit("trace", {})
    bodies = [client.post("/api/runs", json={"preset": "clusters", "name": f"Run {i}"}).json() for i in range(3)]
    rows = [client.get(f"/api/runs/{body['run']}").json() for body in bodies]
    assert [(row["status"], row["ahead"]) for row in rows] == [("queued", 1), ("queued", 2), ("queued", 3)]
    assert [row["ahead"] for row in client.get("/api/runs").json()] == [1, 2, 3]
    client.post(f"/api/runs/{bodies[1]['run']}/stop")
    change_job(store, busy.id, status="done")
    rows = [client.get(f"/api/runs/{body['run']}").json() for body in bodies]
    assert [(row["status"], row["ahead"]) for row in rows] == [("queued", 0), ("stopped", 0), ("queued", 1)]


def test_a_run_stopped_before_it_began_can_begin_after_all(client: TestClient, store: Store) -> None:
    body = client.post("/api/runs", json={"preset": "clusters"}).json()
    assert client.post(f"/api/runs/{body['run']}/stop").json()["status"] == "stopped"
    again = client.post(f"/api/runs/{body['run']}/resume")
    assert again.status_code == 202 and store.job(again.json()["job"]).spec == {"run": body["run"], "resume": True}
    assert client.get(f"/api/runs/{body['run']}").json()["status"] == "queued"


def test_orders_go_to_runs_in_training_and_say_what_is_wrong(client: TestClient, store: Store) -> None:
    body = client.post("/api/runs", json={"preset": "clusters"}).json()
    address = f"/api/runs/{body['run']}/orders"
    assert "is queued: only a run in training" in client.post(address, json={"kind": "pause"}).json()["detail"]
    store.append(Event(run=body["run"], step=0, kind="run_started", payload={}))
    answer = client.post(address, json={"kind": "split", "layer": 1, "expert": 2})
    assert answer.status_code == 202
    (order,) = store.orders.open(body["run"])
    assert (order.id, order.kind, order.layer, order.expert) == (answer.json()["order"], "split", 1, 2)
    for wrong, status in (({"kind": "split"}, 400), ({"kind": "dance"}, 422), ({"kind": "split", "layer": -1}, 422)):
        assert client.post(address, json=wrong).status_code == status
    assert client.post("/api/runs/nope/orders", json={"kind": "pause"}).status_code == 404
    store.append(Event(run=body["run"], step=3, kind="run_paused", payload={}))
    assert client.get(f"/api/runs/{body['run']}").json()["status"] == "paused"
    assert client.post(address, json={"kind": "go_on"}).status_code == 202
    assert "is paused" in client.delete(f"/api/runs/{body['run']}").json()["detail"]
    assert "is paused" in client.post(f"/api/runs/{body['run']}/resume").json()["detail"]
    assert client.post(f"/api/runs/{body['run']}/stop").status_code == 200


def test_checking_says_what_starting_would_do_and_starts_nothing(client: TestClient, store: Store) -> None:
    good = client.post("/api/runs/check", json={"preset": "clusters", "set": {"optim.steps": 123}}).json()
    assert good["ok"] and good["error"] is None and good["config"]["optim"]["steps"] == 123
    for body, words in (
        ({"preset": "clusters", "set": {"optim.lr": -1}}, "lr"),
        ({"preset": "nope"}, "no preset 'nope'"),
        ({"preset": "clusters", "set": {"data.spec": {"corpus": "nope"}}}, "no corpus 'nope'"),
        ({"preset": "clusters", "set": {"data.spec": {"corpus": "clusters", "bad": 1}}}, "bad"),
        ({"preset": "clusters", "set": {"data.spec": "installed"}}, "is text, and model.input is 'vectors'"),
        ({}, "Give a preset"),
        ({"preset": "clusters", "fork": "nope"}, "no checkpoint and no run 'nope'"),
    ):
        said = client.post("/api/runs/check", json=body).json()
        assert (said["ok"], said["config"]) == (False, None) and words in said["error"] and "\n" not in said["error"]
    assert store.runs() == [] and store.jobs() == [] and not any((store.home / "runs").iterdir())


def test_the_form_knows_every_setting_and_every_entry_of_every_registry(client: TestClient) -> None:
    from moescope.data import CORPORA
    from moescope.expansion import ACCEPTORS, DETECTORS, INITIALISERS
    from moescope.objectives import OBJECTIVES
    from moescope.routers import ROUTERS

    said = client.get("/api/schema/run").json()
    properties = said["schema"]["properties"]
    assert {"model", "data", "optim", "expansion"} <= set(properties)
    for table in ("ModelConfig", "DataConfig", "OptimConfig", "ProbeConfig", "ExpansionConfig"):
        for name, part in said["schema"]["$defs"][table]["properties"].items():
            assert part.get("description"), f"{table}.{name} has no help"
    registries: dict[str, Any] = {
        "routers": ROUTERS,
        "objectives": OBJECTIVES,
        "detectors": DETECTORS,
        "initialisers": INITIALISERS,
        "acceptors": ACCEPTORS,
        "corpora": CORPORA,
    }
    assert set(said["options"]) == set(registries)
    for name, registry in registries.items():
        assert list(said["options"][name]) == list(registry)
        for id, entry in said["options"][name].items():
            assert entry["description"], f"{name}.{id} has no description"
            assert entry["schema"]["title"] == registry[id].Config.__name__
            fields = entry["schema"].get("properties", {})
            assert all(part.get("description") for part in fields.values()), f"an option of {name}.{id} has no help"
    assert {"causal", "learns", "grows"} <= set(said["options"]["routers"]["topk_softmax"])


def test_a_bundled_run_is_shown_like_any_other_and_cannot_be_changed(client: TestClient, store: Store) -> None:
    from moescope.store.sample_runs import make_sample_run
    from moescope.trace.io import write_trace
    from synthetic import make_trace

    made = store.home / "made"
    (made / "snapshots").mkdir(parents=True)
    (made / "config.json").write_text(json.dumps({"optim": {"steps": 3}}))
    for step in (0, 3):
        write_trace(make_trace(tokens=200, docs=4, sample=50), made / "snapshots" / f"step-{step:06d}.safetensors")
    events = [Event(run="made", step=0, kind="run_started", payload={})]
    events += [Event(run="made", step=step, kind="train", payload={"loss": 1 / step}) for step in (1, 2, 3)]
    events.append(Event(run="made", step=3, kind="run_finished", payload={}))
    assert store.samples is not None
    make_sample_run(made, events, store.samples / "runs" / "grows", title="It grows", preset="clusters")
    row = client.get("/api/runs/sample-grows").json()  # the first that is asked for
    assert (row["sample"], row["status"], row["name"], row["step"], row["orphan"]) == (
        True,
        "finished",
        "It grows",
        3,
        False,
    )
    assert [item["id"] for item in client.get("/api/runs").json()] == ["sample-grows"]
    assert row["snapshots"] == ["sample-grows-s0", "sample-grows-s3"] and row["checkpoints"] == []
    assert [event["kind"] for event in client.get("/api/runs/sample-grows/events?kind=train").json()] == ["train"] * 3
    assert client.get("/api/runs/sample-grows/figures/loss").json()["layout"]["meta"]["total"] == 3
    assert client.get("/api/traces/sample-grows-s3/figures/token_map").status_code == 200
    assert client.get("/api/traces/sample-grows-s3").json()["origin"] == "sample"
    for method, path, words in (
        ("DELETE", "", "comes with moescope"),
        ("POST", "/stop", "nothing to stop"),
        ("POST", "/resume", "is finished"),
    ):
        answer = client.request(method, f"/api/runs/sample-grows{path}")
        assert answer.status_code == 400 and words in answer.json()["detail"]
    assert client.post("/api/runs/sample-grows/orders", json={"kind": "pause"}).status_code == 400
    assert store.last_event_id() == 0


def test_a_run_whose_job_is_over_is_not_left_running(store: Store) -> None:
    """Whoever wrote the one and died before the other: the next look sets it right."""
    run = store.add_run("A run", "clusters", {})
    job = store.add_job("train", {"run": run.id})
    store.database.update(JobRow, job.id, status="failed")
    store.database.update(RunRow, run.id, status="running", job=job.id)
    JobRunner(store).bury_dead()
    dead = store.run(run.id)
    assert (dead.status, dead.orphan) == ("failed", True) and dead.error
