"""Figures over a run's snapshots: flows count tokens, series draw measurements, answers are what was made."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest

from figure_cases import browser, check
from growth_case import LAYERS, TOPICS, Story, busy_events, growth_events, growth_snapshots
from moescope.errors import InputError
from moescope.figures import divergence, lineage, load_over_time, tightness, token_flow
from moescope.figures.cards import answers
from moescope.metrics import Measurement, measure
from moescope.trace.schema import Trace

LOG = growth_events()
NAMES = ("silhouette", "within_between", "routing_jsd", "routing_jsd_full")


@pytest.fixture(scope="module")
def series() -> list[tuple[int, Trace]]:
    return growth_snapshots()


@pytest.fixture(scope="module")
def points(series: list[tuple[int, Trace]]) -> list[tuple[int, list[Measurement]]]:
    return [(step, measure(trace, NAMES, permutations=20, bootstrap=20)) for step, trace in series]


def links(figure: Any) -> dict[tuple[int, int], tuple[int, str]]:
    (sankey,) = browser(figure)["data"]
    experts, link = sankey["meta"]["experts"], sankey["link"]
    rows = zip(link["source"], link["target"], link["value"], link["color"], strict=True)
    return {(experts[a], experts[b]): (n, color) for a, b, n, color in rows}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_flow_counts_the_tokens_of_every_pair_of_first_experts(series: Any, layer: int, place: int) -> None:
    (first, before), (second, after) = series[place : place + 2]
    figure = token_flow(before, after, layer, events=LOG, steps=(first, second))
    check("token_flow", figure)
    tops = [trace.layers[layer].top1_T.tolist() for trace in (before, after)]
    seen = Counter(zip(*tops, strict=True))
    assert {pair: n for pair, (n, _) in links(figure).items()} == dict(seen)
    mine = [c for c in Story().changes if c.layer == layer and c.parent is not None]
    born = {(c.parent, c.expert) for c in mine if first <= c.step <= second}
    strong = {pair for pair, (_, color) in links(figure).items() if color.endswith("0.8)")}
    assert strong == {pair for pair in born if pair in seen}
    moved = sum(n for (a, b), n in seen.items() if a != b) / before.num_tokens
    assert f"{100 * moved:.0f} %" in browser(figure)["layout"]["meta"]["caption"]


def test_a_flow_has_a_place_for_tokens_without_an_expert_and_refuses_other_tokens(series: Any) -> None:
    (_, before), (_, after) = series[:2]
    layer = before.layers[1]
    empty = layer.expert_TK.copy()
    empty[:10] = -1
    lost = dataclasses.replace(before, layers={1: dataclasses.replace(layer, expert_TK=empty)})
    found = links(token_flow(lost, after, 1))
    assert sum(n for (a, _), (n, _) in found.items() if a == -1) == 10
    assert not any(color.endswith("0.8)") for _, color in found.values())
    with pytest.raises(InputError, match="not of the same tokens"):
        token_flow(before, dataclasses.replace(after, doc=after.doc[::-1].copy()), 1)
    with pytest.raises(InputError, match="Layer 2 is not an MoE layer of this trace; its MoE layers are 1, 3"):
        token_flow(before, after, 2)


def test_series_draw_the_values_with_nulls_and_intervals(points: Any) -> None:
    figure = tightness(points, 1, events=LOG)
    check("tightness", figure)
    curves = [data for data in browser(figure)["data"] if data["meta"]["role"] == "curve"]
    for metric, data in zip(("silhouette", "within_between"), curves, strict=True):
        mine = [(step, next(i for i in found if (i.metric, i.layer) == (metric, 1))) for step, found in points]
        assert data["x"] == [step for step, _ in mine] and data["y"] == [item.value for _, item in mine]
        assert data["error_y"]["array"] == pytest.approx([item.interval[1] - item.value for _, item in mine])
    nulls = [data for data in browser(figure)["data"] if data.get("name") == "null ± 2 sd"]
    assert len(nulls) == 2 and browser(figure)["layout"]["yaxis2"]["type"] == "log"
    check("tightness", tightness([], 1))
    assert "No snapshot" in browser(tightness(points, 7))["layout"]["meta"]["caption"]


def test_divergence_has_a_panel_for_every_label_and_one_when_asked(points: Any) -> None:
    figure = divergence(points, 1, events=LOG)
    check("divergence", figure)
    seen = browser(figure)
    assert seen["layout"]["meta"]["options"] == {"label": ["domain", "topic"]}
    curves = [data for data in seen["data"] if data["meta"]["role"] == "curve"]
    assert [(data["yaxis"], data["name"]) for data in curves] == [
        ("y", "before selection"), ("y", "after selection"), ("y2", "before selection"), ("y2", "after selection"),
    ]  # fmt: skip
    single = [data for data in browser(divergence(points, 1, label="topic"))["data"] if data["meta"]["role"] == "curve"]
    assert [data["y"] for data in single] == [data["y"] for data in curves[2:]]
    assert single[1]["y"][-1] > single[1]["y"][0], "experts take topics over"
    check("divergence", divergence([], 1))
    with pytest.raises(InputError, match="no label 'x'; its labels are domain, topic"):
        divergence(points, 1, label="x")


def test_answers_are_the_topics_that_the_experts_own(series: Any) -> None:
    step, trace = series[-1]
    for layer in LAYERS:
        said = answers(trace)[layer]
        for expert, topics in Story().at(layer, step).items():
            if len(topics) == 1:
                assert said[expert] == f"topic {TOPICS[topics[0]]}"
        assert set(said) <= set(Story().at(layer, step))
    mute = dataclasses.replace(trace, labels={})
    assert answers(mute) == {1: {}, 3: {}}


def test_twenty_experts_keep_colours_of_their_own() -> None:
    for make in (lineage, load_over_time):
        curves = [data for data in browser(make(busy_events()))["data"] if data["meta"]["role"] == "curve"]
        lanes = {data["meta"]["group"]["expert"]: data["line"]["color"] for data in curves if "line" in data}
        assert len(lanes) == 20 == len(set(lanes.values()))
