"""Laws that every figure of the registry keeps, on every irregular trace."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest

from figure_cases import CASES, check, run_events
from growth_case import busy_events, growth_events
from moescope.errors import InputError
from moescope.events import Event
from moescope.figures import FIGURES
from moescope.trace.schema import Trace

OF_EVENTS = ("loss", "load_over_time", "objectives", "drift", "drift_signal", "lineage")
OF_SNAPSHOTS = ("token_flow", "tightness", "divergence")  # tests/figures/test_snapshot_figures.py
OF_SWEEPS = ("race", "frontier")  # their own tests
OF_TRACES = tuple(name for name in FIGURES if name not in (*OF_EVENTS, *OF_SWEEPS, *OF_SNAPSHOTS))


@pytest.fixture(scope="module", params=CASES)
def trace(request: pytest.FixtureRequest) -> Trace:
    made: Trace = CASES[request.param]()
    return made


def drawn(name: str, trace: Trace) -> Iterator[Any]:
    """The figure, once for every combination of layer and label or colour that the trace has."""
    make, wants = FIGURES[name], inspect.signature(FIGURES[name]).parameters
    for layer in trace.layer_ids if "layer" in wants else (None,):
        given = {} if layer is None else {"layer": layer}
        if "color" in wants:
            yield from (make(trace, **given, color=color) for color in ("expert", "confidence", *trace.labels))
        elif "label" in wants:
            yield from (make(trace, **given, label=label) for label in trace.labels)
        else:
            yield make(trace, **given)


@pytest.mark.parametrize("name", OF_TRACES)
def test_a_figure_of_a_trace_keeps_the_contract(name: str, trace: Trace) -> None:
    for figure in drawn(name, trace):
        check(name, figure)


@pytest.mark.parametrize("steps", [0, 1, 60])
@pytest.mark.parametrize("experts", [4, 32])
@pytest.mark.parametrize("name", OF_EVENTS)
def test_a_figure_of_events_keeps_the_contract(name: str, experts: int, steps: int) -> None:
    check(name, FIGURES[name](run_events(steps, experts)))


@pytest.mark.parametrize("name", OF_EVENTS)
@pytest.mark.parametrize("log", [growth_events(), busy_events(), growth_events(70)], ids=["grown", "busy", "early"])
def test_a_figure_of_a_growing_run_keeps_the_contract(name: str, log: list[Event]) -> None:
    check(name, FIGURES[name](log))
    if "layer" in inspect.signature(FIGURES[name]).parameters:
        with pytest.raises(InputError, match="Layer 7 is not an MoE layer of this run; its MoE layers are "):
            FIGURES[name](log, 7)


@pytest.mark.parametrize("name", [name for name in OF_TRACES if name != "layer_expert_load"])
def test_an_unknown_layer_is_refused_in_a_sentence(name: str) -> None:
    more = {"label": "domain"} if name == "label_expert" else {}
    with pytest.raises(InputError, match=r"Layer 7 is not an MoE layer of this trace; its MoE layers are 0, 1, 2\."):
        FIGURES[name](CASES["plain"](), layer=7, **more)


@pytest.mark.parametrize("name", OF_TRACES)
def test_a_figure_is_the_same_every_time(name: str) -> None:
    first, second = (list(drawn(name, CASES["plain"]())) for _ in range(2))
    assert [figure.to_json() for figure in first] == [figure.to_json() for figure in second]
