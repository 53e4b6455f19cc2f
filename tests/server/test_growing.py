"""A growing run over HTTP: its figures, its series of maps, its family tree; measured once, and after a resume anew."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from figure_cases import browser
from growing_home import growing_run
from growth_case import LAYERS, SNAPSHOTS, STEPS, Story, growth_events
from moescope.events import Event
from moescope.metrics import measure
from moescope.store import Store, TraceRow
from moescope.trace.io import read_trace, write_trace
from moescope_server.analysis import POINT_DRAWS, Analysis
from moescope_server.run_figures import EVENT_FIGURES, SNAPSHOT_FIGURES
from moescope_server.tasks import TASKS


@pytest.fixture
def run(store: Store) -> str:
    return growing_run(store)


def get(client: TestClient, run: str, name: str) -> dict[str, Any]:
    answer = client.get(f"/api/runs/{run}/figures/{name}")
    assert answer.status_code == 200, answer.text
    figure: dict[str, Any] = browser_json(answer.text)
    return figure


def browser_json(text: str) -> dict[str, Any]:
    class Sent:
        def to_json(self, **_: Any) -> str:
            return text

    return browser(Sent())


@pytest.mark.parametrize("name", [*EVENT_FIGURES, *SNAPSHOT_FIGURES, "token_map"])
@pytest.mark.parametrize("layer", LAYERS)
def test_every_figure_of_a_run_answers_and_is_kept(client: TestClient, run: str, name: str, layer: int) -> None:
    query = "" if name in ("loss", "objectives") else f"?layer={layer}"
    first = client.get(f"/api/runs/{run}/figures/{name}{query}")
    assert first.status_code == 200, first.text
    assert first.json()["layout"]["meta"]["name"] == name
    assert first.content == client.get(f"/api/runs/{run}/figures/{name}{query}").content


@pytest.mark.parametrize(
    ("query", "status", "said"),
    [
        ("drift?signal=z", 400, "has p_value, cosine"),
        ("drift?expert=1", 400, "no option 'expert'"),
        ("drift_signal?expert=99", 400, "never looked at expert 99"),
        ("divergence?label=x", 400, "its labels are domain, topic"),
        ("token_flow?step=150&before=300", 400, "must come before step 150"),
        ("token_flow?step=7", 404, "no snapshot at step 7; it has some at 150, 300, 450, 600"),
        ("token_map?step=7", 404, "no snapshot at step 7"),
        ("token_map?layer=2", 404, "no MoE layer 2"),
        ("lineage?layer=2", 400, "its MoE layers are 1, 3"),
        ("expert_load", 404, "A run has no figure 'expert_load'"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_a_sentence(
    client: TestClient, run: str, query: str, status: int, said: str
) -> None:
    answer = client.get(f"/api/runs/{run}/figures/{query}")
    assert answer.status_code == status and said in answer.json()["detail"]


def test_a_run_without_snapshots_has_no_flow_and_no_map_yet(client: TestClient, store: Store) -> None:
    run = store.add_run("New", "preset", {}).id
    for name in ("token_flow", "token_map"):
        assert client.get(f"/api/runs/{run}/figures/{name}").status_code == 404
    for name in ("tightness", "divergence", "lineage", "drift"):
        assert client.get(f"/api/runs/{run}/figures/{name}").status_code == 200
    empty = client.get(f"/api/runs/{run}/growth").json()
    assert empty == {"layers": [], "slots": None, "alive": {}, "tree": [], "changes": []}


def test_the_family_tree_is_the_story(client: TestClient, run: str) -> None:
    told = Story()
    found = client.get(f"/api/runs/{run}/growth").json()
    assert found["layers"] == list(LAYERS) and found["slots"] == 8
    assert found["alive"] == {str(layer): sorted(told.at(layer, STEPS + 1)) for layer in LAYERS}
    births = {(row["layer"], row["expert"], row["born"]): row for row in found["tree"] if row["parent"] is not None}
    for change in told.changes:
        if change.parent is not None:
            row = births.pop((change.layer, change.expert, change.step))
            assert (row["parent"], row["why"]) == (change.parent, change.why)
    assert not births
    for row in found["tree"]:
        topics = told.at(row["layer"], STEPS + 1).get(row["expert"], ())
        if row["died"] is not None:
            assert row["answers"] is None and row["end"]
        elif len(topics) == 1:
            assert row["answers"].startswith("topic ")
    assert [event["step"] for event in found["changes"]] == sorted(event["step"] for event in found["changes"])
    assert {event["kind"] for event in found["changes"]} == {"expansion", "acceptance", "prune", "growth_ended"}
    one = client.get(f"/api/runs/{run}/growth?layer=3").json()
    assert {row["layer"] for row in one["tree"]} == {3} == {int(layer) for layer in one["alive"]}
    assert {event["payload"].get("layer", 3) for event in one["changes"]} == {3}
    assert client.get(f"/api/runs/{run}/growth?layer=2").status_code == 400


def test_an_expert_born_after_the_newest_snapshot_has_no_answer_yet(client: TestClient, store: Store, run: str) -> None:
    payload = {"layer": 1, "parent": 2, "child": 7, "why": "drift", "signals": {}}
    store.append(Event(run=run, step=STEPS + 1, kind="expansion", payload=payload))
    rows = client.get(f"/api/runs/{run}/growth?layer=1").json()["tree"]
    assert [row["answers"] for row in rows if row["expert"] == 7] == [None]


def test_points_are_the_measurements_of_the_snapshots_and_are_kept_on_disk(
    client: TestClient, store: Store, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    curve = next(d for d in get(client, run, "tightness?layer=1")["data"] if d["meta"]["role"] == "curve")
    files = sorted((store.home / "cache" / "metrics").glob("*.json"))
    assert curve["x"] == list(SNAPSHOTS) and len(files) == len(SNAPSHOTS)
    row = next(row for row in store.traces(run=run) if row.step == SNAPSHOTS[1])
    few = {"permutations": POINT_DRAWS, "bootstrap": POINT_DRAWS}
    (direct,) = measure(read_trace(Path(row.path)), ["silhouette"], [1], **few)
    assert curve["y"][1] == pytest.approx(direct.value)
    monkeypatch.setattr("moescope.metrics.measure", None)
    again = Analysis(store)
    from moescope_server.traces import TraceCache

    found = again.point(TraceCache().open(row), 1, ("silhouette", "within_between"))
    assert found[0].value == pytest.approx(direct.value) and found[0].interval == pytest.approx(direct.interval)


@pytest.mark.parametrize("name", ["drift", "tightness", "divergence"])
def test_figures_that_end_early_reach_as_far_as_the_tracks(
    client: TestClient, store: Store, run: str, name: str
) -> None:
    assert get(client, run, f"{name}?layer=1")["layout"]["xaxis"]["autorangeoptions"]["include"] == [0, STEPS]
    more = store.add_run("At work", "made-up", {"steps": 800}, steps=800).id
    for step, end in ((0, 100), (130, 200), (500, 800)):
        store.append(Event(run=more, step=step, kind="train" if step else "run_started", payload={"loss": 1.0}))
        assert get(client, more, name)["layout"]["xaxis"]["autorangeoptions"]["include"] == [0, end]


def map_points(figure: dict[str, Any]) -> dict[int, tuple[float, float]]:
    return {
        int(token): (float(x), float(y))
        for data in figure["data"]
        for token, x, y in zip(data["customdata"], data["x"], data["y"], strict=True)
    }


def test_maps_of_a_run_share_their_axes_and_each_starts_from_the_one_before(client: TestClient, run: str) -> None:
    series = [get(client, run, f"token_map?layer=1&step={step}") for step in SNAPSHOTS]
    axes = {json.dumps([figure["layout"][axis]["range"] for axis in ("xaxis", "yaxis")]) for figure in series}
    assert len(axes) == 1
    (x, y) = json.loads(axes.pop())
    maps = [map_points(figure) for figure in series]
    assert all(x[0] < a < x[1] and y[0] < b < y[1] for points in maps for a, b in points.values())
    assert all(set(points) == set(maps[0]) for points in maps)
    for before, after in pairwise(maps):
        old, new = (np.array([points[token] for token in sorted(maps[0])]) for points in (before, after))
        turned = (np.array(sign) * new for sign in ((1, 1), (-1, 1), (1, -1), (-1, -1)))
        away = [float(((old - each) ** 2).sum()) for each in turned]
        assert away[0] == min(away), "no mirrored map lies nearer to the one before"
    assert get(client, run, "token_map?layer=1")["data"][0]["customdata"] is not None
    assert series[0]["layout"]["meta"]["again"] == ["snapshot"]


def test_a_new_snapshot_is_the_only_one_that_is_fitted(
    client: TestClient, store: Store, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    get(client, run, "token_map?layer=1")
    import moescope.projection

    fitted = []
    real = moescope.projection.project

    def counted(*args: Any, **options: Any) -> Any:
        fitted.append(1)
        return real(*args, **options)

    monkeypatch.setattr(moescope.projection, "project", counted)
    old = next(row for row in store.traces(run=run) if row.step == STEPS)
    path = Path(old.path).with_name("step-000700.safetensors")
    trace = read_trace(Path(old.path))
    layers = {n: replace(trace.layers[n], hidden_nd=trace.layers[n].hidden_nd * 1.5) for n in trace.layer_ids}
    write_trace(replace(trace, layers=layers), path)
    store.add_trace(path, "later", "run", run=run, step=700)
    store.append(Event(run=run, step=700, kind="snapshot", payload={"path": f"snapshots/{path.name}"}))
    get(client, run, "token_map?layer=1&step=700")
    get(client, run, "token_map?layer=1&step=150")
    assert len(fitted) == 1


def test_umap_is_a_job_for_the_whole_series(
    client: TestClient, store: Store, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moescope.projection.layout.umap_layout", lambda vectors, start, **_: np.float32(0.9) * start)
    url = f"/api/runs/{run}/figures/token_map?layer=1&method=umap&step=150"
    asked = [client.get(url) for _ in range(2)]
    assert [answer.status_code for answer in asked] == [202, 202] and asked[0].json() == asked[1].json()
    row = store.job(asked[0].json()["job"])
    told: list[float] = []
    done = TASKS["project"](store, row, lambda stage, done=None, left=None: told.append(done or 0.0), lambda: False)
    assert done["method"] == "umap" and told == sorted(told) and told[-1] > 0.7
    assert client.get(url).status_code == 200


def test_a_snapshot_that_a_resume_has_undone_is_not_shown(client: TestClient, store: Store, run: str) -> None:
    store.append(Event(run=run, step=300, kind="run_resumed", payload={"from_step": 300}))
    curve = next(d for d in get(client, run, "tightness?layer=1")["data"] if d["meta"]["role"] == "curve")
    assert curve["x"] == [150, 300]
    assert client.get(f"/api/runs/{run}/figures/token_map?step=600").status_code == 404
    rows = client.get(f"/api/runs/{run}/growth?layer=1").json()["tree"]
    assert max(row["born"] for row in rows) == 260
    assert len([row for row in store.traces(run=run) if isinstance(row, TraceRow)]) == 4


def test_damaged_events_of_a_bundled_run_are_told_and_those_of_a_run_of_ones_own_are_not_hidden(
    client: TestClient, store: Store, tmp_path: Path
) -> None:
    place = tmp_path / "samples" / "runs" / "torn"
    place.mkdir(parents=True)
    (place / "config.json").write_text(json.dumps({"optim": {"steps": STEPS}}))
    told = [replace(event, payload={**event.payload}) for event in growth_events()]
    for event in told:
        if event.kind == "expansion":
            del event.payload["parent"]
    lines = [{"step": event.step, "kind": event.kind, "payload": event.payload, "time": event.time} for event in told]
    (place / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in ("growth", "figures/loss", "figures/drift"):
        answer = client.get(f"/api/runs/sample-torn/{name}")
        assert answer.status_code == 400
        assert answer.json() == {"detail": "'torn' cannot be shown: some of its events are damaged."}
    mine = store.add_run("Mine", "made-up", {}, steps=STEPS)
    store.append_many(replace(event, run=mine.id, id=0) for event in told)
    with pytest.raises(KeyError):
        client.get(f"/api/runs/{mine.id}/growth")
