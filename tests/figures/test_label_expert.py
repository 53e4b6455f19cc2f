"""Label x expert shows lift and share as a loop counts them, and says where there is not enough data."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from figure_cases import CASES, browser
from moescope.data.base import Labels
from moescope.errors import InputError
from moescope.figures import label_expert
from moescope.figures.counts import MIN_COUNT
from moescope.metrics.base import Measurement
from moescope.trace.schema import Trace
from synthetic import make_trace


def counted(trace: Trace, layer: int, label: str) -> tuple[dict[tuple[str, int], int], dict[str, int], dict[int, int]]:
    """Assignments per (value, expert), per value, per expert, over labelled tokens, by a loop."""
    cell: dict[tuple[str, int], int] = {}
    values: dict[str, int] = {}
    experts: dict[int, int] = {}
    labels = trace.labels[label]
    for token, code in enumerate(labels.codes.tolist()):
        for expert in trace.layers[layer].expert_TK[token].tolist():
            if code >= 0 and expert >= 0:
                value = labels.names[code]
                cell[value, expert] = cell.get((value, expert), 0) + 1
                values[value] = values.get(value, 0) + 1
                experts[expert] = experts.get(expert, 0) + 1
    return cell, values, experts


@pytest.mark.parametrize("case", ["plain", "variable_k", "patches", "gap_in_experts", "hostile_text"])
def test_cells_are_lift_with_one_pseudo_count(case: str) -> None:
    trace: Trace = CASES[case]()
    for label in trace.labels:
        cell, values, experts = counted(trace, 0, label)
        total = sum(values.values())
        heat = browser(label_expert(trace, 0, label))["data"][0]
        share = browser(label_expert(trace, 0, label, mode="share"))["data"][0]
        for row, value in enumerate(heat["y"]):
            for column, name in enumerate(heat["x"]):
                seen, base = cell.get((value, int(name[1:])), 0), experts.get(int(name[1:]), 0) / total
                shown = heat["z"][row][column]
                if max(seen, values[value] * base) < MIN_COUNT or base == 0:
                    assert math.isnan(shown) and "not enough data" in heat["text"][row][column]
                else:
                    assert shown == pytest.approx(math.log2((seen + base) / (values[value] + 1) / base))
                    assert share["z"][row][column] == pytest.approx(seen / values[value])


def test_cells_without_data_are_crossed_out() -> None:
    trace = CASES["plain"]()
    figure = browser(label_expert(trace, 1, "syntax"))
    heat, crosses = figure["data"]
    blank = np.argwhere(np.isnan(np.asarray(heat["z"])))
    marked = list(zip(crosses["x"], crosses["y"], strict=True))
    assert len(blank) and marked == [(heat["x"][e], heat["y"][v]) for v, e in blank]
    assert crosses["meta"]["role"] == "blank" and "not enough data" in figure["layout"]["meta"]["caption"]


def test_unlabelled_tokens_are_left_out_and_that_is_said() -> None:
    trace = CASES["variable_k"]()
    figure = browser(label_expert(trace, 0, "half"))
    unlabelled = int((trace.labels["half"].codes < 0).sum())
    meta = figure["layout"]["meta"]
    assert f"{unlabelled:,} unlabelled tokens are left out" in meta["caption"]
    assert meta["shown"] == trace.num_tokens - unlabelled and meta["total"] == trace.num_tokens
    assert "whole documents (10 of them)" in meta["caption"]


def test_a_label_that_decides_the_routing_is_seen_and_one_that_does_not_is_not() -> None:
    def largest(strength: float) -> float:
        heat = browser(label_expert(make_trace(strength=strength, tokens=4000), 0, "domain"))["data"][0]
        return float(np.nanmax(np.asarray(heat["z"])))

    assert largest(3.0) > 1 and largest(0.0) < 0.35


def test_the_most_frequent_values_are_drawn_and_the_rest_announced() -> None:
    trace = CASES["plain"]()
    figure = browser(label_expert(trace, 0, "domain", max_values=2))
    sizes = np.bincount(trace.labels["domain"].codes)
    kept = [trace.labels["domain"].names[i] for i in sorted(np.argsort(-sizes, kind="stable")[:2])]
    assert figure["data"][0]["y"] == kept
    assert figure["layout"]["meta"]["note"] == "2 of 4 values, the most frequent"


def test_the_caption_takes_mutual_information_of_this_layer_and_label() -> None:
    def measured(layer: int, label: str, value: float) -> Measurement:
        return Measurement(
            metric="mutual_information", layer=layer, label=label, value=value, null=0.01, n=1500, unit="nats",
            tensor="layer.0.experts", null_kind="permuted",
        )  # fmt: skip

    all_of_them = [measured(1, "domain", 0.9), measured(0, "syntax", 0.8), measured(0, "domain", 0.321)]
    caption = browser(label_expert(make_trace(), 0, "domain", measurements=all_of_them))["layout"]["meta"]["caption"]
    assert "mutual information 0.321 nats (null 0.010), n = 1,500" in caption
    assert "0.8" not in caption and "0.9" not in caption


def test_values_that_are_markup_are_shown_as_text() -> None:
    figure = browser(label_expert(CASES["hostile_text"](), 0, "<kind>"))
    heat, axis = figure["data"][0], figure["layout"]["yaxis"]
    assert "<script>" in heat["y"] and "&lt;script&gt;" in axis["ticktext"]
    assert axis["title"]["text"] == "&lt;kind&gt;"
    assert not any("<script>" in text or "<i>" in text for row in heat["text"] for text in row)


@pytest.mark.parametrize(
    ("label", "words"), [("nope", "no label 'nope'; its labels are: domain, syntax"), ("empty", "No token")]
)
def test_bad_labels_are_refused(label: str, words: str) -> None:

    trace = make_trace(tokens=100)
    empty = Labels(np.full(100, -1, np.int16), ("a",), "token")
    extended = dataclasses.replace(trace, labels={**trace.labels, "empty": empty})
    with pytest.raises(InputError, match=words):
        label_expert(extended if label == "empty" else trace, 0, label)


def test_bad_mode_is_refused() -> None:
    with pytest.raises(InputError, match="shows 'lift' or 'share'"):
        label_expert(make_trace(), 0, "domain", mode="count")  # type: ignore[arg-type]
