"""The interface of docs/contracts.md: every row of its table is a route, every route is a row, and each answers."""

from __future__ import annotations

import json
import re
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from starlette.testclient import TestClient

from moescope.events import Event
from moescope.store import Store, TraceRow
from moescope.store.rows import RunRow
from moescope.trace.io import read_trace, write_trace
from synthetic import make_trace

CONTRACTS = Path(__file__).parents[2] / "docs" / "contracts.md"


def documented() -> set[tuple[str, str]]:
    """(method, path) of every route in the table, parameters by position."""
    table = "".join(part.split("\n## ")[0] for part in re.split(r"\n###? HTTP", CONTRACTS.read_text())[1:])
    found: set[tuple[str, str]] = set()
    last = ""
    for cell in re.findall(r"^\| (.*?) \|", table, re.MULTILINE):
        for method, path in re.findall(r"`(GET|POST|DELETE)(?: (/api[^\s`?]*))?", cell):
            last = path or last
            found.add((method, re.sub(r"\{[^}]*\}", "{}", last)))
    return found


def served(app: FastAPI) -> set[tuple[str, str]]:
    return {
        (method, re.sub(r"\{[^}]*\}", "{}", str(route.path)))
        for route in iter_route_contexts(app.routes)
        for method in route.methods or ()
        if str(route.path).startswith("/api/") and method != "HEAD" and "{rest:path}" not in str(route.path)
    }


def test_the_table_of_the_contracts_is_what_is_served(app: FastAPI) -> None:
    here, there = served(app), documented()
    assert len(here) >= 27
    assert here - there == set(), "served but not documented"
    assert there - here == set(), "documented but not served"


def keys_of(route: str) -> set[str]:
    """Names between the first braces of a route's answer in the contracts' table."""
    table = CONTRACTS.read_text().split("\n## HTTP")[1]
    row = next(line for line in table.splitlines() if line.startswith(f"| `{route}"))
    answer = row.split(" | ", 1)[1]
    body, depth = "", 0
    for letter in answer[answer.index("{") :]:
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(letter, 0)
        body += letter if depth == 1 and letter not in "{}[]" else ""
        if depth == 0:
            break
    return {part.split(":")[0].split(" or ")[0].strip() for part in body.split(",") if part.strip()}


@pytest.mark.parametrize(
    ("route", "path"),
    [
        ("GET /api/info", "/api/info"),
        ("GET /api/traces`", "/api/traces"),
        ("GET /api/traces/{id}/tokens", "/api/traces/{trace}/tokens?layer=1&start=100&count=50"),
        ("GET /api/traces/{id}/documents", "/api/traces/{trace}/documents"),
        ("GET /api/traces/{id}/experts", "/api/traces/{trace}/experts/1/2"),
        ("GET /api/traces/{id}/search", "/api/traces/{trace}/search?q=return"),
        ("GET /api/runs", "/api/runs/{run}"),
        ("GET /api/presets", "/api/presets"),
        ("GET /api/sources", "/api/sources"),
        ("GET /api/jobs", "/api/jobs/{job}"),
    ],
)
def test_answers_have_the_documented_keys(
    client: TestClient, store: Store, trace: TraceRow, route: str, path: str
) -> None:
    run = store.add_run("A run", "preset", {}, steps=3)
    job = store.add_job("trace", {})
    answer = client.get(path.format(trace=trace.id, run=run.id, job=job.id))
    assert answer.status_code == 200, answer.text
    plain = answer.json()
    first = plain[0] if isinstance(plain, list) else plain
    assert keys_of(route) <= set(first), keys_of(route) - set(first)


def test_the_text_window_says_what_the_trace_says(client: TestClient, trace: TraceRow) -> None:
    window = client.get(f"/api/traces/{trace.id}/tokens?layer=1&start=100&count=50").json()
    opened = read_trace(trace.path)
    layer = opened.layers[1]
    assert (window["start"], window["total"], len(window["text"])) == (100, 1500, 50)
    assert window["text"] == [opened.token_text(i) for i in range(100, 150)]
    assert window["experts"] == layer.expert_TK[100:150].tolist()
    np.testing.assert_allclose(window["gates"], layer.gate_TK[100:150], atol=1e-5)
    assert window["labels"]["syntax"] == opened.labels["syntax"].codes[100:150].tolist()
    sampled = set(opened.sample.tolist()) if opened.sample is not None else set()
    assert window["in_map"] == [i in sampled for i in range(100, 150)]


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/api/traces/{}/tokens?layer=9", 404, "no MoE layer 9"),
        ("/api/traces/{}/tokens?count=5001", 422, "count"),
        ("/api/traces/{}/tokens?start=x", 422, "start"),
        ("/api/traces/{}/metrics?layer=9", 404, "no MoE layer 9"),
        ("/api/traces/{}/experts/0/99", 400, "99"),
        ("/api/traces/{}/experts/9/0", 404, "no MoE layer 9"),
        ("/api/traces/{}/figures/nope", 404, "no figure 'nope'"),
        ("/api/traces/{}/figures/loss", 404, "drawn from a run"),
        ("/api/traces/{}/figures/token_map?color=nope", 400, "nope"),
        ("/api/traces/{}/figures/token_map?method=tsne", 422, "method"),
        ("/api/traces/{}/figures/expert_load?color=expert", 400, "no option 'color'"),
        ("/api/traces/{}/figures/label_expert", 400, "needs the option 'label'"),
        (f"/api/runs/nope/events?after={10**30}", 422, "after"),
        (f"/api/runs/nope/events?limit={10**30}", 422, "limit"),
        (f"/api/events?after={10**30}", 422, "after"),
        ("/api/traces/{}/image/0.png", 400, "no images"),
        ("/api/traces/nope", 404, "There is no trace 'nope'"),
        ("/api/traces/..%2f..%2fetc", 404, "There is no /api/"),
        ("/api/checkpoints/nope", 404, "There is no checkpoint"),
        ("/api/runs/nope", 404, "There is no run"),
        ("/api/runs/nope/figures/loss", 404, "There is no run"),
        ("/api/jobs/nope", 404, "There is no job"),
        ("/api/nope", 404, "There is no /api/nope"),
        ("/api/traces/{}/nope", 404, "There is no /api/"),
    ],
)
def test_bad_requests_get_one_sentence(client: TestClient, trace: TraceRow, path: str, status: int, words: str) -> None:
    answer = client.get(path.format(trace.id))
    assert answer.status_code == status, answer.text
    detail = answer.json()["detail"]
    assert words in detail and "\n" not in detail and len(detail) < 400


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("POST", "/api/traces", {"checkpoint": "nope"}, 404, "There is no checkpoint"),
        ("POST", "/api/traces", {"checkpoint": "nope", "tokens": 0}, 422, "tokens"),
        ("POST", "/api/traces", {"checkpoint": "nope", "extra": 1}, 422, "extra"),
        ("POST", "/api/traces", [], 422, ""),
        ("POST", "/api/runs", {"preset": "nope"}, 400, "There is no preset 'nope'"),
        ("POST", "/api/runs", {"preset": "../../secret.toml"}, 400, "There is no preset"),
        ("POST", "/api/runs/nope/stop", None, 404, "There is no run"),
        ("POST", "/api/runs/nope/resume", None, 404, "There is no run"),
        ("POST", "/api/jobs/nope/cancel", None, 404, "There is no job"),
        ("POST", "/api/checkpoints/open", {"path": "relative"}, 400, "not an absolute path"),
        ("POST", "/api/checkpoints/open", {"path": "/no/such/place"}, 400, "There is nothing at"),
        ("POST", "/api/checkpoints/open", {"path": "/" + "x" * 300}, 400, "not a path that can be opened"),
        ("POST", "/api/checkpoints/open", {"path": "~nobody-at-all/x"}, 400, "not a path that can be opened"),
        ("POST", "/api/checkpoints/open", {"path": "/a\0b"}, 400, ""),
        ("PUT", "/api/info", None, 404, "There is no /api/info"),
    ],
)
def test_bad_changes_get_one_sentence(
    client: TestClient, method: str, path: str, body: Any, status: int, words: str
) -> None:
    answer = client.request(method, path, json=body)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["detail"]


def test_json_that_is_none_is_one_sentence(client: TestClient) -> None:
    answer = client.post("/api/runs", content=b"{not json", headers={"content-type": "application/json"})
    assert answer.status_code == 422 and "JSON" in answer.json()["detail"]


def test_the_trace_page_starts_where_most_is_to_be_seen(client: TestClient, store: Store) -> None:
    strong, path = store.new_trace_path("Strong")
    made = make_trace(tokens=4000, docs=40, strength=2.0)
    weak = make_trace(tokens=4000, docs=40, strength=0.0)
    write_trace(replace(made, layers={0: weak.layers[0], 1: made.layers[1], 2: weak.layers[2]}), path)
    store.add_trace(path, "Strong", "recorded", id=strong)
    detail = client.get(f"/api/traces/{strong}").json()
    assert (detail["default_layer"], detail["default_label"]) == (1, "domain")
    assert [len(detail["palette"][str(layer)]) for layer in (0, 1, 2)] == [8, 8, 8]
    assert len(detail["label_palette"]["domain"]) == 4
    assert detail["findings"] and all(item["layer"] == 1 for item in detail["findings"])


def test_measures_are_computed_once_and_kept_by_content(
    client: TestClient, store: Store, trace: TraceRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = client.get(f"/api/traces/{trace.id}/metrics").json()
    assert {item["layer"] for item in everything} == {0, 1, 2}
    assert all({"metric", "value", "null", "n"} <= set(item) for item in everything)
    one = client.get(f"/api/traces/{trace.id}/metrics?layer=1").json()
    assert one == [item for item in everything if item["layer"] == 1]
    assert len(list((store.home / "cache" / "metrics").iterdir())) == 1

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("moescope.metrics.measure", fail)
    copy, path = store.new_trace_path("A copy")
    path.write_bytes(Path(trace.path).read_bytes())
    store.add_trace(path, "A copy", "recorded", id=copy)
    assert client.get(f"/api/traces/{copy}/metrics").json() == everything


@pytest.mark.parametrize(
    ("name", "query"),
    [
        ("layer_expert_load", ""),
        ("expert_load", "?layer=1"),
        ("expert_load", ""),
        ("token_map", "?layer=1&color=domain&max_points=100"),
        ("token_map", "?color=confidence"),
        ("label_expert", "?layer=2&label=syntax"),
    ],
)
def test_figures_are_plotly_json_with_their_meta(client: TestClient, trace: TraceRow, name: str, query: str) -> None:
    answer = client.get(f"/api/traces/{trace.id}/figures/{name}{query}")
    assert answer.status_code == 200, answer.text
    figure = answer.json()
    assert figure["layout"]["meta"]["moescope"] == 1 and figure["layout"]["meta"]["name"] == name
    assert figure["data"] and "template" in figure["layout"]
    assert answer.content == client.get(f"/api/traces/{trace.id}/figures/{name}{query}").content
    if "max_points=100" in query:
        assert figure["layout"]["meta"]["shown"] == 100


def test_a_figure_follows_its_file(client: TestClient, trace: TraceRow) -> None:
    before = client.get(f"/api/traces/{trace.id}/figures/layer_expert_load").content
    write_trace(make_trace(tokens=1500, docs=12, seed=1), trace.path)
    assert client.get(f"/api/traces/{trace.id}/figures/layer_expert_load").content != before
    Path(trace.path).unlink()
    gone = client.get(f"/api/traces/{trace.id}/figures/layer_expert_load")
    assert gone.status_code == 404 and "no longer there" in gone.json()["detail"]


def test_a_runs_figures_hear_the_floor_and_the_calibration(client: TestClient, store: Store) -> None:
    run = store.add_run("A run", "preset", {"seed": 1}, steps=3)
    floor = {"data": {"floor": {"nats": 1.25, "std_error": 0.01}}}
    store.append(Event(run=run.id, step=0, kind="run_started", payload=floor))
    told = {"coefficient": 0.001, "calibrated": True, "value": 0.2, "scale": 10.0, "effective": 0.01}
    calibration = {"target": 2.0, "objectives": {"variance": told}}
    store.append(Event(run=run.id, step=1, kind="calibration", payload=calibration))
    store.append(Event(run=run.id, step=1, kind="train", payload={"loss": 1.0, "objectives": {"variance": 0.1}}))
    assert client.get(f"/api/runs/{run.id}/figures/loss").json()["layout"]["shapes"][0]["y0"] == 1.25
    said = client.get(f"/api/runs/{run.id}/figures/objectives").json()["layout"]["meta"]["caption"]
    assert "0.001 × 10" in said


def test_a_runs_figures_and_events_follow_its_log(client: TestClient, store: Store) -> None:
    run = store.add_run("A run", "preset", {"seed": 1}, steps=3)
    assert client.get(f"/api/runs/{run.id}/figures/loss").status_code == 200
    for step in (1, 2, 3):
        store.append(Event(run=run.id, step=step, kind="train", payload={"loss": 1.0 / step}))
        layers = [
            {"layer": 2, "load": [0.25, 0.75], "maxvio": 0.5, "dropped": 0.0, "tokens": 9, "experts_per_token": 1.0}
        ]
        store.append(Event(run=run.id, step=step, kind="load", payload={"layers": layers}))
    store.append(Event(run="other", step=3, kind="train", payload={"loss": float("nan")}))
    loss = client.get(f"/api/runs/{run.id}/figures/loss").json()
    assert loss["layout"]["meta"]["total"] == 3
    assert client.get(f"/api/runs/{run.id}/figures/load_over_time?layer=2").status_code == 200
    assert client.get(f"/api/runs/{run.id}/figures/load_over_time?layer=7").status_code == 400
    assert client.get(f"/api/runs/{run.id}/figures/token_map").status_code == 404
    events = client.get(f"/api/runs/{run.id}/events?kind=train").json()
    assert [event["payload"]["loss"] for event in events] == [1.0, 0.5, 1.0 / 3]
    rest = client.get(f"/api/runs/{run.id}/events?after={events[0]['id']}&kind=train&kind=load&limit=2").json()
    assert [(event["kind"], event["step"]) for event in rest] == [("load", 1), ("train", 2)]
    (public,) = client.get("/api/runs").json()
    assert (public["status"], public["step"], public["steps"]) == ("queued", 3, 3)


def test_numbers_that_json_lacks_are_null_everywhere(client: TestClient, store: Store) -> None:
    run = store.add_run("A run", "preset", {"x": float("inf")})
    payload = {"loss": float("nan"), "objectives": {"a": float("-inf")}, "list": [float("nan"), 1.5]}
    store.append(Event(run=run.id, step=1, kind="train", payload=payload))
    (event,) = client.get(f"/api/runs/{run.id}/events").json()
    assert event["payload"] == {"loss": None, "objectives": {"a": None}, "list": [None, 1.5]}
    assert client.get(f"/api/runs/{run.id}").json()["config"] == {"x": None}
    assert client.get(f"/api/runs/{run.id}/figures/loss").status_code == 200


def test_images_are_png_of_the_right_pixels(client: TestClient, store: Store) -> None:
    pixels = np.arange(3 * 8 * 5, dtype=np.uint8).reshape(3, 8, 5)
    made = make_trace(tokens=60, docs=3)
    id, path = store.new_trace_path("Images")
    write_trace(
        replace(
            made, images=pixels, start=None, end=None, text=b"", token_id=None, meta=replace(made.meta, kind="patches")
        ),
        path,
    )
    store.add_trace(path, "Images", "recorded", id=id)
    answer = client.get(f"/api/traces/{id}/image/2.png")
    assert answer.headers["content-type"] == "image/png" and answer.content.startswith(b"\x89PNG\r\n\x1a\n")
    start = answer.content.index(b"IDAT")
    length = int.from_bytes(answer.content[start - 4 : start], "big")
    raw = zlib.decompress(answer.content[start + 4 : start + 4 + length])
    assert np.array_equal(np.frombuffer(raw, np.uint8).reshape(8, 6)[:, 1:], pixels[2])
    assert client.get(f"/api/traces/{id}/image/3.png").status_code == 404
    assert client.get(f"/api/traces/{id}/search?q=DOC1").json()["total"] == 1


def test_deleting_takes_a_trace_from_the_list_and_the_disk(client: TestClient, trace: TraceRow) -> None:
    assert client.delete(f"/api/traces/{trace.id}").status_code == 204
    assert client.get("/api/traces").json() == [] and not Path(trace.path).exists()
    assert client.delete(f"/api/traces/{trace.id}").status_code == 404


def test_runs_are_deleted_only_when_they_rest(client: TestClient, store: Store) -> None:
    run = store.add_run("A run", "preset", {})
    assert client.delete(f"/api/runs/{run.id}").status_code == 400
    assert "only watched" in client.post(f"/api/runs/{run.id}/stop").json()["detail"]
    store.database.update(RunRow, run.id, status="failed")
    assert "nothing to stop" in client.post(f"/api/runs/{run.id}/stop").json()["detail"]
    assert "only watched" in client.post(f"/api/runs/{run.id}/resume").json()["detail"]
    assert client.delete(f"/api/runs/{run.id}").status_code == 204
    assert client.get("/api/runs").json() == []


def test_the_page_and_plotly_are_served_and_revalidated(client: TestClient) -> None:
    for path, kind in (("/", "text/html"), ("/vendor/plotly.min.js", "text/javascript")):
        answer = client.get(path)
        assert answer.status_code == 200 and answer.headers["content-type"].startswith(kind)
        assert answer.headers["cache-control"] == "no-cache"
        again = client.get(path, headers={"if-none-match": answer.headers["etag"]})
        assert again.status_code == 304 and not again.content


def test_every_json_answer_is_strict_json(client: TestClient, trace: TraceRow) -> None:
    for part in ("", "/metrics", "/tokens", "/documents", "/experts/0/0", "/figures/token_map"):
        text = client.get(f"/api/traces/{trace.id}{part}").text

        def refuse(word: str) -> None:
            raise AssertionError(f"{word} in the answer")

        json.loads(text, parse_constant=refuse)
