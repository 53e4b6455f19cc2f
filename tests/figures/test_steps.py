"""The axis of steps: from the fork of a run that went on from another one, as far as its page goes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from figure_cases import browser
from growth_case import STEPS, growth_events
from moescope.figures import divergence, drift, drift_signal, lineage, load_over_time, loss, objectives, tightness

FORK = 250


def forked() -> list[Any]:
    """The growing run from step 250 on, as a run of its own that says so; two kinds of its data came at 40 and 400."""
    first, *log = growth_events()
    layers = [{**row, "alive": [0, 1, 2]} for row in first.payload["layers"]]
    arrivals = [{"value": "early", "step": 40}, {"value": "late", "step": 400}]
    data = {"arrivals": arrivals, "floor": {"nats": 1.5, "std_error": 0.01}}
    payload = {**first.payload, "layers": layers, "data": data, "forked": {"run": "p", "checkpoint": "c", "step": FORK}}
    return [replace(first, step=FORK, payload=payload), *(event for event in log if event.step > FORK)]


@pytest.mark.parametrize("make", [loss, objectives, load_over_time, drift, drift_signal, lineage])
def test_steps_of_a_fork_begin_where_it_does(make: Any) -> None:
    figure = browser(make(forked()))
    axis = figure["layout"]["xaxis"]
    begin = axis["autorangeoptions"]["minallowed"] if make is not lineage else axis["range"][0]
    assert begin == pytest.approx(FORK, abs=0.01 * (STEPS - FORK))
    steps = [step for data in figure["data"] for step in data["x"]]
    assert min(steps) >= FORK
    marked = {data["name"]: data["x"] for data in figure["data"] if data["meta"]["role"] == "marks"}
    assert make is lineage or list(marked["data arrive"]) == [400]
    whole = browser(make(growth_events()))["layout"]["xaxis"]
    assert (whole["autorangeoptions"]["minallowed"] if make is not lineage else round(whole["range"][0] + 6)) == 0


@pytest.mark.parametrize("make", [tightness, divergence])
def test_steps_of_what_is_measured_at_snapshots_begin_there_too(make: Any) -> None:
    axis = browser(make([], 1, events=forked()))["layout"]["xaxis"]
    assert axis["autorangeoptions"] == {"minallowed": FORK, "include": [FORK, STEPS]}
    axis = browser(make([], 1, events=forked(), until=700))["layout"]["xaxis"]
    assert axis["autorangeoptions"]["include"] == [FORK, 700]


def test_the_founders_of_a_fork_are_there_from_its_step() -> None:
    figure = browser(lineage(forked(), 3))
    lanes = [data for data in figure["data"] if data["mode"] == "lines" and data["y"][0] == data["y"][1]]
    assert {data["x"][0] for data in lanes if data["meta"]["group"]["expert"] < 3} == {FORK}
