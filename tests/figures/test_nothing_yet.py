"""What a run's figures say before there is anything to draw."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from figure_cases import browser
from moescope.events import Event
from moescope.figures import drift, drift_signal, lineage, load_over_time


def caption(figure: Any) -> str:
    return str(browser(figure)["layout"]["meta"]["caption"])


def test_a_queued_run_has_nothing_yet() -> None:
    for make in (load_over_time, drift, drift_signal, lineage):
        assert caption(make([])).startswith("Nothing yet: ")


def test_what_stands_where_a_detector_has_not_looked() -> None:
    def started(expansion: Any) -> list[Event]:
        return [Event(run="r", step=0, kind="run_started", payload={"config": {"expansion": expansion}})]

    flat = "It looks once the training loss has flattened."
    for make in (drift, drift_signal):
        assert caption(make(started({"detector": "conflict"}))).endswith(f"has not looked at layer 0. {flat}")
        assert caption(make(started({"detector": "mass"}))) == "Nothing yet: the detector has not looked at layer 0."
        assert caption(make(started(None))).startswith("No detector watches this run")
    told = {
        "layer": 0, "experts": [0], "fired": [False], "chosen": None, "signals": {"conflict": [None]},
        "thresholds": {"conflict": {"at": 4.0, "fires": "above"}},
    }  # fmt: skip
    blank = Event(run="r", step=10, kind="drift", payload={"detector": "conflict", "layers": [told]})
    seen = replace(
        blank, step=20, payload={"detector": "conflict", "layers": [told | {"signals": {"conflict": [1.0]}}]}
    )
    assert caption(drift([blank])).endswith(flat) and flat not in caption(drift([blank, seen]))
