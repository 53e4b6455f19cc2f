"""Findings say what is there, with its numbers, and nothing where there is nothing."""

from __future__ import annotations

import dataclasses
import json
import re
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from scipy import stats

from figure_cases import CASES, with_layers
from moescope.data.base import Labels
from moescope.figures.cards import defaults, findings
from moescope.figures.cards.association import Cell, discoveries
from moescope.figures.cards.significance import SUBSETS, clustered, permuted
from moescope.metrics.base import Measurement
from moescope.trace.schema import Trace
from synthetic import make_trace

KEYS = {"text", "layer", "expert", "label", "label_value", "value", "null", "n", "q", "tokens"}


def found(trace: Trace) -> list[dict[str, Any]]:
    """The findings as JSON gives them to the page."""
    plain: list[dict[str, Any]] = json.loads(json.dumps(findings(trace), allow_nan=False))
    return plain


def about_labels(trace: Trace) -> list[dict[str, Any]]:
    return [row for row in found(trace) if row["q"] is not None]


def documents_with_tastes(seed: int, taste: float, *, docs: int = 20) -> Trace:
    """Every document has its own preferred experts, whatever its label: tokens are far from independent."""
    trace = make_trace(tokens=1500, docs=docs, strength=0.0, seed=seed)
    rng = np.random.default_rng(1000 + seed)
    domain = Labels((rng.permutation(docs) % 4)[trace.doc].astype(np.int16), ("a", "b", "c", "d"), "document")
    runs = Labels((np.arange(1500) // 25 * 7919 % 5).astype(np.int16), tuple("vwxyz"), "token")

    def route(traced: Any) -> np.ndarray:
        logits = rng.normal(size=(1500, 8)) + taste * rng.normal(size=(docs, 8))[trace.doc]
        return np.argsort(-logits, axis=1)[:, :2].astype(np.int32)

    return with_layers(dataclasses.replace(trace, labels={"domain": domain, "runs": runs}), expert_TK=route)


@pytest.mark.parametrize("case", CASES)
def test_findings_keep_the_contract(case: str) -> None:
    trace: Trace = CASES[case]()
    rows = found(trace)
    assert 1 <= len(rows) <= 3
    for row in rows:
        assert set(row) == KEYS and row["layer"] in trace.layer_ids and f"n = {row['n']:,}" in row["text"]
        assert row["text"].endswith(".") and all(0 <= token < trace.num_tokens for token in row["tokens"])
        assert row["label"] is None or (row["label_value"] in trace.labels[row["label"]].names)
        if row["expert"] is not None:
            assert set(row["tokens"]) <= set(
                np.nonzero(trace.layers[row["layer"]].expert_TK == row["expert"])[0].tolist()
            )


def test_the_numbers_of_a_sentence_are_those_of_a_loop() -> None:
    trace = make_trace()
    rows = about_labels(trace)
    assert rows
    for row in rows:
        labels, traced = trace.labels[row["label"]], trace.layers[row["layer"]]
        code = labels.names.index(row["label_value"])
        mine = [t for t in range(trace.num_tokens) if labels.codes[t] == code]
        labelled = [t for t in range(trace.num_tokens) if labels.codes[t] >= 0]
        share, base = (np.mean([row["expert"] in traced.expert_TK[t] for t in part]) for part in (mine, labelled))
        assert (row["value"], row["null"], row["n"]) == (pytest.approx(share), pytest.approx(base), len(mine))
        said = re.search(r"takes (\d+) % of .* against (\d+) % of", row["text"])
        assert said and (abs(int(said[1]) - 100 * share), abs(int(said[2]) - 100 * base)) <= (0.51, 0.51)
        assert share >= 1.5 * base and share - base >= 0.1 and row["q"] <= 0.05
        assert set(row["tokens"]) <= set(mine)


@pytest.mark.parametrize("taste", [0.0, 2.0])
def test_nothing_is_found_where_labels_say_nothing(taste: float) -> None:
    """Documents that differ for reasons of their own are not taken for their labels, more often than 5 % allows."""
    false = [seed for seed in range(50) if about_labels(documents_with_tastes(seed, taste))]
    assert stats.binomtest(len(false), 50, 0.05, alternative="greater").pvalue > 0.05


def test_nothing_stands_out_is_said() -> None:
    rows = found(make_trace(strength=0.0))
    assert len(rows) == 1 and rows[0]["text"].startswith("Nothing stands out: none of ")
    assert rows[0]["expert"] is rows[0]["label"] is rows[0]["value"] is None and rows[0]["tokens"] == []
    unlabelled = dataclasses.replace(make_trace(strength=0.0), labels={}, token_id=None)
    assert "too few tokens carry labels" in found(unlabelled)[0]["text"]


@pytest.mark.parametrize("seed", range(4))
def test_a_moderate_preference_is_found(seed: int) -> None:
    rows = about_labels(make_trace(tokens=4000, docs=40, strength=0.8, seed=seed))
    assert rows and rows[0]["label"] == "domain"


def test_a_preference_of_one_document_alone_is_not_reported() -> None:
    """It is significant token by token, but does not replicate over documents."""
    trace = make_trace(tokens=2000, docs=20, strength=0.0)

    def one_document(traced: Any) -> np.ndarray:
        experts = traced.expert_TK.copy()
        experts[trace.doc == 4, 0], experts[trace.doc == 4, 1] = 6, 3
        return experts

    spoiled = with_layers(trace, expert_TK=one_document)
    code = trace.labels["domain"].codes[np.flatnonzero(trace.doc == 4)[0]]
    mine = trace.labels["domain"].codes == code
    share = (spoiled.layers[0].expert_TK[mine] == 6).any(1).mean()
    base = (spoiled.layers[0].expert_TK == 6).any(1).mean()
    assert share > base + 0.08 and not about_labels(spoiled)


def test_one_word_of_one_expert_is_found_as_a_token() -> None:
    trace = make_trace(tokens=3000, strength=0.0, docs=30)
    assert trace.token_id is not None

    def word(traced: Any) -> np.ndarray:
        experts = traced.expert_TK.copy()
        experts[trace.token_id == 7] = [6, 1]
        return experts

    rows = about_labels(with_layers(dataclasses.replace(trace, labels={}), expert_TK=word))
    assert len(rows) == 1 and rows[0]["label"] is None and "“␣x” tokens" in rows[0]["text"]
    assert rows[0]["value"] == 1.0 and rows[0]["expert"] in (1, 6)


def test_findings_differ_in_expert_and_value() -> None:
    rows = about_labels(make_trace(strength=3.0, docs=40, tokens=4000))
    assert len({(row["layer"], row["expert"]) for row in rows}) == len(rows) >= 2
    assert len({(row["label"], row["label_value"]) for row in rows}) == len(rows)


def test_a_collapsed_layer_is_said() -> None:
    rows = found(with_layers(make_trace(k=1, strength=0.0), expert_TK=np.zeros((2000, 1), np.int32)))
    assert len(rows) == 1 and rows[0]["expert"] == 0 and rows[0]["value"] == 1.0 and rows[0]["null"] == 0.125
    assert "takes 100 % of all assignments, 8× an even share (even routing: 12.5 ±" in rows[0]["text"]


def test_dead_experts_are_said() -> None:
    spread = np.arange(2000)[:, None] % 7
    rows = found(
        with_layers(make_trace(k=1, strength=0.0), expert_TK=lambda t: np.where(t.expert_TK == 7, spread, t.expert_TK))
    )
    assert "1 of 8 experts (7) get almost nothing" in rows[0]["text"]


def test_false_discovery_rate_is_that_of_all_tested_cells() -> None:
    """Adjusted p equals scipy's over the given p filled up with ones; what did not replicate is not found."""
    p = np.random.default_rng(0).random(12) ** 4 * 0.01
    cells = [Cell(0, "y", 0, e, 0.6, 0.2, 100, 5, float(p[e]), True) for e in range(12)]
    adjusted = stats.false_discovery_control(np.r_[p, np.ones(188)])[:12]
    got = {cell.expert: q for cell, q in discoveries(cells, 200)}
    assert got == {e: pytest.approx(adjusted[e]) for e in range(12) if adjusted[e] <= 0.05} and 0 < len(got) < 12
    assert discoveries([dataclasses.replace(cell, replicated=False) for cell in cells], 200) == []


def measured(
    layer: int, label: str | None, value: float | None, p: float = 0.01, metric: str = "mutual_information"
) -> Any:
    return Measurement(
        metric=metric, layer=layer, label=label, value=value, null=0.1, p=p, n=9, unit="nats", tensor="", null_kind=""
    )


def test_the_default_is_where_labels_tell_most_about_experts() -> None:
    trace = make_trace()
    assert defaults(trace) == (0, "domain")
    assert defaults(dataclasses.replace(trace, labels={})) == (0, None)
    rows = [
        measured(0, "domain", 0.3),
        measured(2, "syntax", 0.5),
        measured(1, "domain", 0.4),
        measured(1, "gone", 0.9),
    ]
    rows += [measured(1, "domain", None), measured(1, "domain", 0.99, p=0.4), measured(1, None, 5.0, metric="maxvio")]
    assert defaults(trace, rows) == (2, "syntax")


def test_permutation_p_is_that_of_all_subsets() -> None:
    """Against every choice of 3 of 8 units, counted one by one."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(20, 60, 8).astype(float)
    chosen = rng.binomial(tokens.astype(int)[:, None], [0.2, 0.5, 0.4], size=(8, 3)).astype(float)
    member = np.isin(np.arange(8), [1, 4, 6])
    chosen[member, 1] += 9
    share = chosen[member].sum(0) / tokens[member].sum()
    every = [list(part) for part in combinations(range(8), 3)]
    exact = np.mean([chosen[part].sum(0) / tokens[part].sum() >= share - 1e-9 for part in every], axis=0)
    assert permuted(chosen, tokens, member) == pytest.approx(exact, abs=4 * np.sqrt(0.25 / SUBSETS))


@pytest.mark.parametrize("spread", [0.0, 0.15])
def test_clustered_p_is_uniform_at_most_under_its_null(spread: float) -> None:
    """Units with shares of their own, the same in both groups: no more small p than there should be."""
    rng = np.random.default_rng(0)
    small = 0
    for _ in range(400):
        mine, other = rng.integers(5, 40, (2, 24)).astype(float)
        share = np.clip(rng.normal(0.4, spread, 24), 0, 1)
        got, rest = (rng.binomial(part.astype(int), share).astype(float)[:, None] for part in (mine, other))
        small += clustered(got, mine, rest, other, 23)[0] <= 0.05
    assert small <= 34


def test_clustered_p_sees_a_difference() -> None:
    rng = np.random.default_rng(1)
    size = np.full(20, 30.0)
    got, rest = (rng.binomial(30, share, 20).astype(float)[:, None] for share in (0.6, 0.4))
    assert clustered(got, size, rest, size, 19)[0] < 1e-4 < 0.99 < clustered(rest, size, got, size, 19)[0]
