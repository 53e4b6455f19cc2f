"""Figures of a growing run against its own story: who lives when, what fired, what happened, what a resume undid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from figure_cases import browser, run_events
from growth_case import ALPHA, CHANGES, DELTA, LAYERS, STEPS, Story, busy_events, growth_events
from moescope.errors import InputError
from moescope.events import Event
from moescope.figures import drift, drift_signal, lineage, load_over_time, loss, objectives
from moescope.figures.drift import distance
from moescope.figures.lives import alive_at, family_order, lives, settled
from moescope.figures.marks import STYLES, marks_of, reason
from moescope.figures.palette import CATEGORICAL

LOG = growth_events()


def marks(figure: Any) -> dict[str, dict[int, Any]]:
    """{kind: {step: event ids}} of a figure's marks."""
    found = [data for data in browser(figure)["data"] if data["meta"]["role"] == "marks"]
    return {data["name"]: dict(zip(data["x"], data["customdata"], strict=True)) for data in found}


def test_lives_are_those_of_the_story() -> None:
    told = Story()
    for layer in LAYERS:
        found = lives(LOG, layer)
        for step in range(1, STEPS + 1):
            assert alive_at(found, step) == set(told.at(layer, step))
        born = [(life.born, life.expert, life.parent) for life in found if life.parent is not None]
        want = [(c.step, c.expert, c.parent) for c in told.changes if c.layer == layer and c.parent is not None]
        assert born == want
        assert [life.died for life in found if life.expert == 5] == ([220, None] if layer == 1 else [])


def test_lives_of_a_fork_with_gaps_and_of_a_run_that_never_said_what_it_has() -> None:
    rows = [{"layer": 2, "num_experts": 2, "alive": [1, 4]}]
    fork = [Event(run="r", step=100, kind="run_started", payload={"layers": rows})]
    assert [(life.expert, life.born) for life in lives(fork, 2)] == [(1, 100), (4, 100)]
    assert [life.expert for life in lives(run_events(), 3)] == [0, 1, 2, 3]
    told = {"layers": [{"layer": 0, "load": [0.5, 0, 0.5], "alive": [0, 2]}]}
    bare = [Event(run="r", step=5, kind="load", payload=told)]
    assert [life.expert for life in lives(bare, 0)] == [0, 2] and lives([], 0) == []


def resumed(log: Sequence[Event], at: int) -> list[Event]:
    """What a log looks like when the run died at its end and went on from step `at`, without growing any more."""
    again = Event(run="r", step=at, kind="run_resumed", payload={"from_step": at}, id=9000)
    redone = [replace(event, id=9001 + i) for i, event in enumerate(log) if event.step > at]
    return [*log, again, *(event for event in redone if event.kind in ("train", "load", "eval"))]


def test_what_a_resume_did_again_is_forgotten_everywhere() -> None:
    log = resumed(LOG, 250)
    before = [event for event in LOG if event.step <= 250]
    assert settled(log, ("expansion",)) == settled(before, ("expansion",))
    for layer in LAYERS:
        assert lives(log, layer) == lives(before, layer)
    for make in (loss, objectives, load_over_time, drift, drift_signal, lineage):
        figure = browser(make(log))
        found = [data for data in figure["data"] if data["meta"]["role"] == "marks"]
        assert max((max(data["x"]) for data in found), default=0) <= 250
        assert make is lineage or found
    heat = browser(drift(log))["data"][0]
    assert max(heat["x"]) <= 250


@pytest.mark.parametrize("make", [load_over_time, drift, drift_signal])
@pytest.mark.parametrize("layer", LAYERS)
def test_marks_are_the_changes_of_the_layer_with_their_events(make: Any, layer: int) -> None:
    found = marks(make(LOG, layer))
    assert set(found) <= set(STYLES)
    mine = [c for c in CHANGES if c.layer == layer]
    assert set(found["split"]) == {c.step for c in mine if c.parent is not None and c.why != "by hand"}
    assert set(found.get("removed", ())) == {c.step for c in mine if c.why == "removed"}
    assert set(found["stays"]) == {c.judged for c in mine if c.judged is not None}
    assert set(found["by hand"]) == {c.step for c in mine if c.why == "by hand"}
    assert set(found["pruned"]) == {c.step for c in mine if c.heir is not None and c.why not in ("removed", "by hand")}
    by_id = {event.id: event for event in LOG}
    for step, ids in found["split"].items():
        assert [(by_id[int(i)].kind, by_id[int(i)].step) for i in ids] == [("expansion", step)]


def test_figures_without_a_layer_mark_all_and_name_them() -> None:
    both = set(marks(load_over_time(LOG, 1))["split"]) | set(marks(load_over_time(LOG, 3))["split"])
    assert set(marks(loss(LOG))["split"]) == both == set(marks(objectives(LOG))["split"])
    words = {mark.step: mark.words for mark in marks_of(LOG, None) if mark.style == "split"}
    assert words[140] == "layer 1, step 140: E4 split from E0 (its gradient drifted: p = 0.004, cosine = 0.01)"
    assert words[270] == "layer 3, step 270: E4 split from E1 (tokens were reached by no expert)"
    assert not marks(loss(run_events()))
    ends = {mark.step: mark.words for mark in marks_of(LOG, 3) if mark.style in ("by hand", "pruned", "growth ends")}
    assert ends[520] == "step 520: E3 was retired by hand"
    said = [mark.words for mark in marks_of(LOG, 3) if mark.step == 420]
    assert "step 420: E2 was pruned: no token reached it" in said and "its phase is over" in "".join(said)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_lineage_says_why_in_words(layer: int) -> None:
    hovers = [
        str(data[key]) for data in browser(lineage(LOG, layer))["data"] for key in ("text", "customdata") if key in data
    ]
    said = " ".join(hovers)
    assert "(its gradient drifted: p = 0.004" in said
    want = ("(split by hand)", "pruned at the end of growth") if layer == 1 else ("was retired by hand", "no expert)")
    assert all(words in said for words in want)
    for raw in ("(drift)", "(coverage)", "(by hand)", ": end of growth", ": never reached", ": by hand"):
        assert raw not in said
    told = {"why": "drift", "detector": "conflict", "signals": {}}
    assert reason(told) == "its tokens pulled it two ways"


def test_marks_stand_above_the_panels_and_leave_what_grows_in_place() -> None:
    plain = [event for event in LOG if event.kind not in ("expansion", "acceptance", "prune", "growth_ended")]
    for make in (loss, objectives, load_over_time):
        bare, figure = browser(make(plain)), browser(make(LOG))
        strip = figure["layout"]["yaxis99"]
        assert figure["layout"]["yaxis"]["domain"][1] == pytest.approx(strip["domain"][0]) and strip["domain"][1] == 1
        assert len({data["marker"]["symbol"] for data in figure["data"] if data["meta"]["role"] == "marks"}) == 6
        assert {"expansion", "acceptance", "prune"} <= set(figure["layout"]["meta"]["again"])
        if make is not load_over_time:
            assert figure["layout"]["meta"]["grow"] == bare["layout"]["meta"]["grow"]


def test_arrivals_of_data_are_marked() -> None:
    payload = {"data": {"arrivals": [{"value": "english", "step": 0}, {"value": "python <b>", "step": 40}]}}
    log = [Event(run="r", step=0, kind="run_started", payload=payload), *run_events()[1:]]
    assert set(marks(loss(log))["data arrive"]) == {0, 40}
    text = next(d["text"] for d in browser(loss(log))["data"] if d["name"] == "data arrive")
    assert "python &lt;b&gt;" in text[1]


def test_a_river_shows_every_expert_while_it_lives_beside_its_parent() -> None:
    figure = browser(load_over_time(LOG, 1))
    curves = [data for data in figure["data"] if data["meta"]["role"] == "curve"]
    order = [data["meta"]["group"]["expert"] for data in curves]
    told, loads = Story(), {event.step: event for event in LOG if event.kind == "load"}
    for data in curves:
        expert = data["meta"]["group"]["expert"]
        assert data["fillcolor"] == CATEGORICAL[expert]
        for step, share in zip(data["x"], data["y"], strict=True):
            lives_now = expert in told.at(1, step)
            assert np.isnan(share) != lives_now
            assert not lives_now or share == loads[step].payload["layers"][0]["load"][expert]
    assert order.index(4) - order.index(0) == 1, "a child stands beside its parent"
    grown = {rule["trace"]: rule["y"] for rule in figure["layout"]["meta"]["grow"]}
    assert grown == {place: f"layers.0.load.{expert}" for place, expert in enumerate(order)}
    dead = browser(load_over_time([event for event in LOG if event.step <= 460], 1))
    alive = {rule["y"] for rule in dead["layout"]["meta"]["grow"]}
    assert "layers.0.load.6" not in alive and "layers.0.load.5" in alive


def test_no_lane_is_crossed_by_the_birth_of_another() -> None:
    """Where no slot is used twice: between a parent's lane and its child's, nobody lives yet when the child is born."""
    for log, layer in ((LOG, 3), (busy_events(), 2)):
        found = [life for life in lives(log, layer) if not life.end.startswith("removed")]
        lane = {expert: place for place, expert in enumerate(family_order(found))}
        for life in found:
            if life.parent is None:
                continue
            low, high = sorted((lane[life.parent], lane[life.expert]))
            between = [other for other in found if low < lane[other.expert] < high]
            assert all(other.born > life.born or (other.died or math.inf) < life.born for other in between)


def test_a_lineage_draws_every_life_from_birth_to_death() -> None:
    figure = browser(lineage(LOG, 1, answers={0: "domain <python>", 5: ""}))
    lanes = [data for data in figure["data"] if data["mode"] == "lines" and data["y"][0] == data["y"][1]]
    found = lives(LOG, 1)
    drawn = {(d["meta"]["group"]["expert"], d["x"][0], d["x"][1]) for d in lanes}
    assert drawn == {(life.expert, life.born, STEPS if life.died is None else life.died) for life in found}
    births = [data for data in figure["data"] if data["mode"] == "lines" and data["x"][0] == data["x"][1]]
    assert {(d["meta"]["group"]["expert"], d["x"][0]) for d in births} == {
        (life.expert, life.born) for life in found if life.parent is not None
    }
    names = figure["layout"]["yaxis"]["ticktext"]
    for data in births:
        key = (data["meta"]["group"]["expert"], data["x"][0])
        parent = next(life.parent for life in found if (life.expert, life.born) == key)
        assert names[data["y"][0]] == f"E{parent}"
    said = [data["text"][0] for data in figure["data"] if data["mode"] == "markers+text"]
    assert said == ["domain &lt;python&gt;"]
    removed = [d for d in figure["data"] if d["mode"] == "markers" and d["x"] == [220]]
    assert removed[0]["marker"]["symbol"] == "x" and "removed" in removed[0]["customdata"][0]


def test_distance_is_the_power_of_ten_to_the_threshold_of_what_is_furthest() -> None:
    told = {
        "experts": [0, 1, 2, 3],
        "signals": {"p": [0.1, 0.001, None, 0.01], "t": [0.4, 400.0, 9.0, -1.0]},
        "thresholds": {"p": {"at": 0.01, "fires": "below"}, "t": {"at": 4.0, "fires": "above"}},
    }
    assert [distance(told, e, ["p"]) for e in (0, 1, 3)] == pytest.approx([-1, 1, 0])
    assert [distance(told, e, ["t"]) for e in (0, 1)] == pytest.approx([-1, 2])
    assert [distance(told, e, ["p", "t"]) for e in (0, 1)] == pytest.approx([-1, 1])
    assert np.isnan(distance(told, 2, ["p", "t"])) and np.isnan(distance(told, 7, ["p"]))
    assert distance(told, 3, ["t"]) == pytest.approx(-1.25), "no ratio: the difference, in units of the threshold"


def test_drift_cells_are_past_the_threshold_exactly_where_the_detector_fired() -> None:
    figure = browser(drift(LOG, 1))
    heat = figure["data"][0]
    asked = [(e.step, e.payload["layers"][0]) for e in LOG if e.kind == "drift"]
    assert list(heat["x"]) == [step for step, _ in asked] and figure["layout"]["meta"]["note"] is None
    z = np.asarray(heat["z"])
    for row, name in enumerate(heat["y"]):
        expert = int(name[1:])
        for column, (_, told) in enumerate(asked):
            fired = expert in told["experts"] and told["fired"][told["experts"].index(expert)]
            assert (z[row, column] >= 0) == fired
            assert expert in told["experts"] or np.isnan(z[row, column])
    assert figure["layout"]["meta"]["options"] == {"signal": ["p_value", "cosine"]}
    single = np.asarray(browser(drift(LOG, 1, signal="p_value"))["data"][0]["z"])
    p = asked[5][1]["signals"]["p_value"][0]
    row = list(heat["y"]).index("E0")
    assert single[row, 5] == pytest.approx(np.clip(-np.log10(p / ALPHA), -1, 1))
    with pytest.raises(InputError, match="threshold on 'z'; it has p_value, cosine"):
        drift(LOG, 1, signal="z")


def test_thinning_of_thousands_of_evaluations_loses_no_firing() -> None:
    log = busy_events()
    fired = {
        (e.step, f"E{expert}", told["chosen"] == expert)
        for e in log
        if e.kind == "drift"
        for told in e.payload["layers"]
        for expert, yes in zip(told["experts"], told["fired"], strict=True)
        if yes
    }
    figure = browser(drift(log, max_points=20))
    heat = figure["data"][0]
    assert len(heat["x"]) == 20 and "columns" in figure["layout"]["meta"]["note"]
    drawn = {
        (step, name, data["name"].endswith("duplicated"))
        for data in figure["data"][1:]
        if data["meta"]["role"] == "blank" and data["type"] == "scatter"
        for step, name in zip(data["x"], data["y"], strict=True)
    }
    assert drawn == fired and len(fired) > 24
    hot = {name for name, row in zip(heat["y"], np.asarray(heat["z"]), strict=True) if np.nanmax(row) >= 0}
    assert hot == {name for _, name, _ in fired}
    signal = browser(drift_signal(log, expert=0, max_points=20))
    points = next(data for data in signal["data"] if data["name"] == "fired")
    assert set(points["x"]) == {step for step, name, _ in fired if name == "E0"}


@pytest.mark.parametrize("until", [None, 6000])
def test_cells_that_fired_are_wide_enough_to_be_seen(until: int | None) -> None:
    """However long the run: every evaluation past its threshold is orange over 1.5 % of the axis, and no other is."""
    figure = browser(drift(busy_events(), max_points=10_000, until=until))
    heat, wide = figure["data"][0], figure["data"][1]
    half = 0.015 * (until or 3000) / 2
    edge, z = np.asarray(wide["x"]), np.asarray(wide["z"])
    assert list(wide["y"]) == list(heat["y"]) and wide["hoverinfo"] == "skip"
    for name, near, row in zip(heat["y"], np.asarray(heat["z"]), z, strict=True):
        fired = [step for step, value in zip(heat["x"], near, strict=True) if value >= 0]
        for low, high, value in zip(edge, edge[1:], row, strict=False):
            covered = any(step - half <= low and high <= step + half for step in fired)
            assert (value >= 0) == covered, (name, low)
        assert all(edge.min() <= step - half and step + half <= edge.max() for step in fired)
    assert figure["layout"]["xaxis"]["autorangeoptions"]["include"] == [0, until or 3000]


def test_drift_signal_draws_the_signals_and_their_thresholds() -> None:
    figure = browser(drift_signal(LOG, 1, expert=3))
    curves = [data for data in figure["data"] if data["name"] in ("p_value", "cosine")]
    asked = [(e.step, e.payload["layers"][0]) for e in LOG if e.kind == "drift"]
    mine = [(step, told, told["experts"].index(3)) for step, told in asked if 3 in told["experts"]]
    for data in curves:
        assert list(data["x"]) == [step for step, _, _ in mine]
        values = [told["signals"][data["name"]][place] for _, told, place in mine]
        assert list(data["y"]) == values, "null where it is not defined: a gap"
    lines = [s for s in figure["layout"]["shapes"] if s["type"] == "line" and s.get("xref") == "paper"]
    assert [(line["y0"], line["yref"]) for line in lines] == [(ALPHA, "y"), (DELTA, "y2")]
    assert figure["layout"]["yaxis"]["type"] == "log" and figure["layout"]["meta"]["options"]["expert"] == list(
        range(7)
    )
    assert "E2" in browser(drift_signal(LOG, 1))["layout"]["meta"]["title"], "the expert that was duplicated last"
    with pytest.raises(InputError, match="never looked at expert 7 of layer 1"):
        drift_signal(LOG, 1, expert=7)


def test_a_detector_without_thresholds_is_drawn_by_its_marks() -> None:
    told = {"layer": 0, "experts": [0, 1], "fired": [False, True], "chosen": 1, "signals": {}, "thresholds": {}}
    log = [Event(run="r", step=9, kind="drift", payload={"detector": "random", "layers": [told]})]
    figure = browser(drift(log))
    assert figure["data"][1]["name"] == "fired, duplicated" and np.isnan(np.asarray(figure["data"][0]["z"])).all()
    assert "no threshold" in browser(drift_signal(log))["layout"]["meta"]["caption"]


def test_a_river_that_a_page_extends_is_the_river_of_the_whole_log() -> None:
    """Until the next change, at which the page asks again."""
    early = browser(load_over_time([event for event in LOG if event.step <= 300], 1))
    later = browser(load_over_time([event for event in LOG if event.step < 330], 1))
    for event in LOG:
        if event.kind == "load" and 300 < event.step < 330:
            for rule in early["layout"]["meta"]["grow"]:
                place, slot = int(rule["y"].split(".")[1]), int(rule["y"].split(".")[3])
                data, share = early["data"][rule["trace"]], event.payload["layers"][place]["load"][slot]
                data |= {"x": [*data["x"], event.step], "y": [*data["y"], share]}
    for old, new in zip(early["data"], later["data"], strict=True):
        assert list(old["x"]) == list(new["x"])
        if old["meta"]["role"] == "curve":
            np.testing.assert_array_equal(old["y"], new["y"])
