"""Laws of bundled runs: made of a finished run without its weights, read in place, in nobody's log."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from moescope.errors import InputError
from moescope.events import Event
from moescope.figures import FIGURES
from moescope.store import RunRow, Store
from moescope.store.sample_runs import make_sample_run
from moescope.trace.io import read_trace, write_trace
from synthetic import make_trace

STEPS = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a made-up run of 60 steps with 7 snapshots and one checkpoint."""
    run = tmp_path_factory.mktemp("made") / "a-run"
    (run / "snapshots").mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"optim": {"steps": STEPS}, "model": {}}))
    (run / "checkpoints" / "step-000060").mkdir(parents=True)
    (run / "checkpoints" / "step-000060" / "model.safetensors").write_bytes(b"x" * 100_000)
    for step in range(0, STEPS + 1, 10):
        write_trace(make_trace(tokens=80, docs=3, sample=20), run / "snapshots" / f"step-{step:06d}.safetensors")
    return run


def event(step: int, kind: str, **payload: object) -> Event:
    return Event(run="a-run", step=step, kind=kind, payload=payload, time=1e9 + step)


def told() -> list[Event]:
    """Its events, with a break at step 35 after a checkpoint at step 30."""
    out = [
        event(0, "run_started", config={}, layers=[]),
        event(0, "snapshot", path="snapshots/step-000000.safetensors"),
    ]

    def steps(first: int, last: int, loss: float) -> None:
        for step in range(first, last + 1):
            out.append(event(step, "train", loss=loss + step / 3, objectives={"a": float("nan")}))
            layer = {"layer": 1, "experts": [0, 1], "fired": [False, step == 17], "chosen": None}
            out.append(event(step, "drift", detector="mass", layers=[layer]))
            if step == 17:
                out.append(event(step, "expansion", layer=1, parent=1, child=2, alive=[0, 1, 2]))
            if step % 10 == 0:
                out.append(event(step, "snapshot", path=f"snapshots/step-{step:06d}.safetensors"))

    steps(1, 30, 0.0)
    out.append(event(30, "checkpoint", path="checkpoints/step-000030"))
    steps(31, 35, 500.0)
    out.append(event(35, "run_failed", error="It was killed.", orphan=True))
    out.append(event(30, "run_resumed", from_step=30))
    steps(31, STEPS, 0.0)
    return [*out, event(STEPS, "run_finished", loss=20.0)]


@pytest.fixture
def samples(folder: Path, tmp_path: Path) -> Path:
    out = tmp_path / "samples" / "runs" / "Growing"
    made = make_sample_run(
        folder, told(), out, title="It grows", preset="grow", created="2020-01-02", snapshots=3, points=20
    )
    assert made == out
    return tmp_path / "samples"


@pytest.fixture
def store(home: Path, samples: Path) -> Store:
    return Store(home, samples=samples)


def test_a_sample_holds_what_figures_need_and_no_weights(samples: Path, folder: Path) -> None:
    place = samples / "runs" / "Growing"
    assert sorted(path.name for path in place.iterdir()) == ["card.json", "config.json", "events.jsonl", "snapshots"]
    names = sorted(path.name for path in (place / "snapshots").iterdir())
    assert names == [f"step-{step:06d}.safetensors" for step in (0, 30, 60)]
    small, large = (read_trace(root / "snapshots" / names[1]) for root in (place, folder))
    assert small.layers[1].logits_TE is None and large.layers[1].logits_TE is not None
    assert (small.layers[1].expert_TK == large.layers[1].expert_TK).all() and small.sample is not None
    assert sum(path.stat().st_size for path in place.rglob("*") if path.is_file()) < 100_000


def test_its_events_are_those_of_the_run_unbroken_and_thinned(store: Store) -> None:
    events = store.events_after(0, store.run("sample-growing").id)
    train = [event for event in events if event.kind == "train"]
    assert len(train) == 20 and (train[0].step, train[-1].step) == (1, STEPS)
    assert all(event.payload["loss"] < 100 for event in events if event.kind == "train")  # not what was done again
    assert train[0].payload == {"loss": 0.333333, "objectives": {"a": None}}
    assert [event.step for event in events if event.kind == "expansion"] == [17]
    drift = [event.step for event in events if event.kind == "drift"]
    assert 17 in drift and len(drift) in (20, 21)
    assert [event.step for event in events if event.kind == "snapshot"] == [0, 30, 60]
    assert not {"checkpoint", "run_failed", "run_resumed"} & {event.kind for event in events}
    assert [event.id for event in events] == sorted({event.id for event in events}) and events[0].id >= 1
    assert all(event.run == "sample-growing" for event in events)
    assert FIGURES["loss"](events).layout.meta["total"] == 20


def test_it_is_a_finished_run_with_its_snapshots(store: Store, samples: Path) -> None:
    (run,) = store.runs()
    assert (run.id, run.name, run.preset, run.origin) == ("sample-growing", "It grows", "grow", "sample")
    assert (run.status, run.step, run.steps, run.created) == ("finished", STEPS, STEPS, "2020-01-02")
    assert run.config["optim"]["steps"] == STEPS
    traces = sorted(store.traces(run=run.id), key=lambda row: row.step or 0)
    assert [(row.id, row.step, row.origin) for row in traces] == [(f"{run.id}-s{s}", s, "sample") for s in (0, 30, 60)]
    assert Path(traces[0].path).is_relative_to(samples)
    assert store.checkpoints() == [] and not any((store.home / "runs").iterdir())


def test_its_events_are_in_nobodys_log_and_can_be_read_from_any_place(store: Store) -> None:
    store.runs()
    assert store.events_after(0) == [] and store.last_event_id() == 0
    everything = store.events_after(0, "sample-growing")
    middle = everything[9].id
    assert store.events_after(middle, "sample-growing") == everything[10:]
    train = store.events_after(middle, "sample-growing", ["train", "run_finished"], 3)
    assert train == [event for event in everything[10:] if event.kind in ("train", "run_finished")][:3]


def test_it_is_read_only(store: Store) -> None:
    (run,) = store.runs()
    with pytest.raises(InputError, match="comes with moescope"):
        store.delete_run(run.id)
    with pytest.raises(InputError, match="is finished: only a run in training"):
        store.orders.add(run, "pause")
    for trace in store.traces(run=run.id):
        with pytest.raises(InputError, match="comes with moescope"):
            store.delete_trace(trace.id)


def test_it_is_read_again_only_when_its_files_change(
    store: Store, samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run,) = store.runs()
    read: list[Path] = []

    def describe(path: Path) -> dict[str, object]:
        read.append(path)
        return {"tokens": 1}

    monkeypatch.setattr("moescope.store.sample_runs.describe_trace", describe)
    assert store.runs() == [run] and read == []
    place = samples / "runs" / "Growing"
    (place / "card.json").write_text('{"title": "Other"}')
    assert store.runs()[0].name == "Other" and read == []
    write_trace(make_trace(tokens=90, docs=3, sample=20), place / "snapshots" / "step-000030.safetensors")
    store.sync_samples()
    assert [path.stem for path in read] == ["step-000030"]
    (place / "snapshots" / "step-000060.safetensors").unlink()
    assert sorted(row.step or 0 for row in store.traces(run=run.id)) == [0, 30]
    (place / "config.json").unlink()
    assert store.runs() == [] and store.traces() == []


@pytest.mark.parametrize("damage", ["line", "far", "card", "snapshot", "config", "events", "empty", "steps", "huge"])
def test_damage_hides_only_what_is_damaged(store: Store, samples: Path, damage: str) -> None:
    place = samples / "runs" / "Growing"
    good = len(store.events_after(0, store.runs()[0].id))
    lines = (place / "events.jsonl").read_text().splitlines()
    unlikely = [
        {"step": step, "kind": kind, "payload": {}, "time": time}
        for step, kind, time in ((10**30, "train", 0), (-1, "train", 0), (1, 5, 0), (1, "train", math.nan))
    ]
    spoilt = {
        "line": ("events.jsonl", "\n".join([*lines[:5], "{torn", '{"kind": "x"}', "[]", '{"kind": []}', *lines[6:]])),
        "far": ("events.jsonl", "\n".join([*lines[:5], *map(json.dumps, unlikely), *lines[6:]])),
        "card": ("card.json", "[" * 100_000),
        "snapshot": ("snapshots/step-000030.safetensors", "no"),
        "config": ("config.json", "{torn"),
        "events": ("events.jsonl", "\x00\udcff nothing"),
        "empty": ("events.jsonl", ""),
        "steps": ("config.json", '{"optim": {"steps": "many"}}'),
        "huge": ("config.json", '{"optim": {"steps": 1' + "0" * 30 + "}}"),
    }
    name, text = spoilt[damage]
    (place / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    (samples / "runs" / "stray.txt").write_text("")
    (samples / "runs" / "nothing").mkdir()
    gone = damage in ("config", "events", "empty")
    runs = store.runs()
    assert len(runs) == (0 if gone else 1)
    if gone:
        return
    assert runs[0].steps == STEPS
    assert len(store.events_after(0, runs[0].id)) == good - (damage in ("line", "far"))
    assert len(store.traces(run=runs[0].id)) == 3 - (damage == "snapshot")


def test_only_a_finished_run_makes_a_sample_and_nothing_is_overwritten(folder: Path, samples: Path) -> None:
    with pytest.raises(InputError, match="has not finished"):
        make_sample_run(folder, told()[:-1], samples / "runs" / "other", title="x")
    with pytest.raises(InputError, match="exists already"):
        make_sample_run(folder, told(), samples / "runs" / "Growing", title="x")
    assert {path.name for path in (samples / "runs").iterdir()} == {"Growing"}


def test_a_run_of_ones_own_is_no_sample_whatever_it_is_called(store: Store) -> None:
    run = store.add_run("sample", "preset", {})
    store.append(Event(run=run.id, step=1, kind="train", payload={"loss": 1.0}))
    assert store.run(run.id).origin == "run" and len(store.events_after(0, run.id)) == 1
    assert {row.id for row in store.database.all(RunRow, origin="run")} == {run.id}
