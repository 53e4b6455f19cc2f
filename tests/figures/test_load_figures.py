"""The load figures show what a loop over tokens counts."""

from __future__ import annotations

import numpy as np
import pytest

from figure_cases import CASES, browser
from moescope.figures import expert_load, layer_expert_load
from moescope.figures.counts import layer_load
from moescope.trace.schema import LayerTrace, Trace
from synthetic import make_trace


def counted(traced: LayerTrace) -> tuple[dict[int, int], dict[int, int], int]:
    """Assignments and drops per expert, and all assignments, by a loop."""
    count: dict[int, int] = {}
    dropped: dict[int, int] = {}
    for experts, sent in zip(traced.expert_TK.tolist(), traced.sent_TK.tolist(), strict=True):
        for expert, went in zip(experts, sent, strict=True):
            if expert >= 0:
                count[expert] = count.get(expert, 0) + 1
                dropped[expert] = dropped.get(expert, 0) + (not went)
    return count, dropped, sum(count.values())


@pytest.mark.parametrize("case", CASES)
def test_cells_are_log2_of_load_over_even(case: str) -> None:
    trace: Trace = CASES[case]()
    heat = browser(layer_expert_load(trace))["data"][0]
    for row, layer in enumerate(trace.layer_ids):
        traced = trace.layers[layer]
        count, _, total = counted(traced)
        assert heat["y"][row] == f"L{layer}"
        for column, name in enumerate(heat["x"]):
            expert, value = int(name[1:]), heat["z"][row][column]
            if expert in count:
                expected = np.log2(count[expert] / total * traced.meta.num_experts)
                assert value == pytest.approx(expected)
                assert f"L{layer} · {name}" in heat["text"][row][column]
            elif value == heat["zmin"]:
                assert "0× an even share" in heat["text"][row][column]
            else:
                assert np.isnan(value) and heat["text"][row][column] == ""


def test_layers_with_fewer_experts_leave_cells_blank() -> None:
    heat = browser(layer_expert_load(CASES["uneven_layers"]()))["data"][0]
    assert list(heat["y"]) == ["L0", "L3"] and len(heat["x"]) == 8
    assert np.isnan(heat["z"][0][4:]).all() and np.isfinite(heat["z"][1]).all()


def test_dead_slots_are_blank_and_not_zero() -> None:
    heat = browser(layer_expert_load(CASES["gap_in_experts"]()))["data"][0]
    dead = [heat["x"].index(name) for name in ("E1", "E5")]
    assert np.isnan(np.asarray(heat["z"])[:, dead]).all()
    bars = browser(expert_load(CASES["gap_in_experts"](), 0))["data"][0]
    assert list(bars["x"]) == ["E0", "E2", "E3", "E4", "E6", "E7"]


@pytest.mark.parametrize("case", CASES)
def test_bars_are_shares_of_assignments(case: str) -> None:
    trace: Trace = CASES[case]()
    for layer in trace.layer_ids:
        count, _, total = counted(trace.layers[layer])
        figure = browser(expert_load(trace, layer))
        bars = figure["data"][0]
        assert sum(bars["y"]) == pytest.approx(1)
        for name, share in zip(bars["x"], bars["y"], strict=True):
            assert share == pytest.approx(count.get(int(name[1:]), 0) / total)
        low, high = figure["layout"]["shapes"][0]["y0"], figure["layout"]["shapes"][0]["y1"]
        assert low < 1 / len(bars["x"]) < high


def test_drops_are_counted_apart() -> None:
    trace = CASES["variable_k"]()
    load, (_, dropped, _) = layer_load(trace.layers[0]), counted(trace.layers[0])
    assert load.dropped_E.tolist() == [dropped.get(e, 0) for e in range(8)] and load.dropped > 0
    figure = browser(expert_load(trace, 0))
    assert f"{dropped[3]} dropped" in figure["data"][0]["text"][3]
    assert "then dropped" in figure["layout"]["meta"]["caption"]


@pytest.mark.parametrize("k", [1, 2, 5])
def test_null_is_what_even_random_routing_does(k: int) -> None:
    """The stated standard deviation is that of loads over many draws of even routing."""
    rng = np.random.default_rng(0)
    trace = make_trace(tokens=400, k=k, layers=1)
    shares = []
    for _ in range(300):
        chosen = np.argsort(rng.random((400, 8)), axis=1)[:, :k]
        shares.append(np.bincount(chosen.ravel(), minlength=8) / (400 * k))
    assert layer_load(trace.layers[0]).std == pytest.approx(np.std(shares), rel=0.06)
    assert layer_load(trace.layers[0]).std * 8 == pytest.approx(np.sqrt((8 - k) / (k * 400)))
