"""An expert's card counts what a loop counts, beside what chance would give."""

from __future__ import annotations

import json
import math
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scipy import stats

from figure_cases import CASES, with_layers
from moescope.errors import InputError
from moescope.figures.cards import expert_card
from moescope.trace.schema import Trace
from synthetic import make_trace


def card(trace: Trace, layer: int, expert: int) -> dict[str, Any]:
    """The card as JSON gives it to the page."""
    plain: dict[str, Any] = json.loads(json.dumps(expert_card(trace, layer, expert), allow_nan=False))
    return plain


def chosen_by(trace: Trace, layer: int, expert: int) -> list[int]:
    rows = trace.layers[layer].expert_TK.tolist()
    return [token for token, experts in enumerate(rows) if expert in experts]


@pytest.mark.parametrize("case", CASES)
def test_load_gate_and_entropy_are_those_of_its_tokens(case: str) -> None:
    trace: Trace = CASES[case]()
    layer = trace.layer_ids[-1]
    traced, expert = trace.layers[layer], 3
    mine, found = chosen_by(trace, layer, expert), card(trace, layer, expert)
    total = int((traced.expert_TK >= 0).sum())
    assert found["assignments"] == len(mine) and found["n"] == trace.num_tokens
    assert found["load"] == pytest.approx(len(mine) / total)
    assert found["load_null"] == pytest.approx(1 / traced.meta.num_experts) and found["load_null_std"] > 0
    assert found["entropy"] == pytest.approx(np.mean([traced.entropy_T[t] for t in mine]), rel=1e-5)
    gates = [traced.gate_TK[t, traced.expert_TK[t].tolist().index(expert)] for t in mine]
    assert found["mean_gate"] == pytest.approx(np.mean(gates), rel=1e-5)
    assert found["dropped"] == int((~traced.sent_TK & (traced.expert_TK == expert)).sum())


def test_top_tokens_are_those_that_come_here_more_than_others() -> None:
    """Where routing follows the word, an expert's words lead its card; words that come by chance do not."""
    trace = make_trace(tokens=3000, strength=0.0, k=1)
    assert trace.token_id is not None
    follows = np.where(trace.token_id < 2, 5, trace.layers[0].expert_TK[:, 0]).astype(np.int32)[:, None]
    found = card(with_layers(trace, expert_TK=follows), 0, 5)["top_tokens"]
    assert {row["text"] for row in found[:2]} == {"def", " return"}
    assert [row["significant"] for row in found[:2]] == [True, True] and not any(r["significant"] for r in found[2:])
    here = Counter(trace.token_id[follows[:, 0] == 5].tolist())
    everywhere = Counter(trace.token_id.tolist())
    base = sum(here.values()) / trace.num_tokens
    for row in found:
        word = int(trace.token_id[row["token"]])
        assert trace.token_text(row["token"]) == row["text"] and follows[row["token"], 0] == 5
        assert (row["count"], row["of"]) == (here[word], everywhere[word])
        assert row["share"] == pytest.approx(here[word] / everywhere[word]) and row["null"] == pytest.approx(base)
        assert row["lift"] == pytest.approx(math.log2((here[word] + base) / (everywhere[word] + 1) / base))


def test_tokens_seen_too_rarely_have_no_place_among_the_top() -> None:
    trace = make_trace(tokens=50)
    assert all(row["of"] >= 5 for row in card(trace, 0, 0)["top_tokens"])


def test_without_a_preference_few_tokens_are_called_significant() -> None:
    called = [
        row["significant"] for seed in range(10) for e in range(8)
        for row in card(make_trace(strength=0.0, layers=1, seed=seed), 0, e)["top_tokens"]
    ]  # fmt: skip
    assert len(called) > 300 and sum(called) <= 5


@pytest.mark.parametrize("case", ["plain", "variable_k", "patches", "hostile_text"])
def test_contexts_are_the_tokens_with_the_largest_gates_in_their_text(case: str) -> None:
    trace: Trace = CASES[case]()
    traced = trace.layers[1]
    found = card(trace, 1, 2)["contexts"]
    gate = {t: float(traced.gate_TK[t, traced.expert_TK[t].tolist().index(2)]) for t in chosen_by(trace, 1, 2)}
    assert [row["gate"] for row in found] == pytest.approx([gate[row["token"]] for row in found])
    assert all(one["gate"] >= two["gate"] for one, two in pairwise(found)) and 1 <= len(found) <= 8
    told = {(row["before"], row["text"], row["after"]) for row in found}
    assert len(told) == len(found)
    if case == "plain":
        assert [row["gate"] for row in found] == pytest.approx(sorted(gate.values(), reverse=True)[:8])
    for row in found:
        if trace.start is not None and trace.end is not None:
            at = int(trace.start[row["token"]])
            assert trace.text[:at].decode().endswith(row["before"])
            assert trace.text[at:].decode().startswith(row["text"] + row["after"])
            assert len(row["before"].encode()) <= 40 and len(row["after"].encode()) <= 30
        else:
            assert row["before"].startswith("document ") and row["text"].startswith("patch ")


def test_contexts_stay_inside_the_document() -> None:
    trace = make_trace(tokens=400, docs=100)
    assert trace.start is not None and trace.end is not None
    for expert in range(8):
        for row in card(trace, 0, expert)["contexts"]:
            mine = np.flatnonzero(trace.doc == trace.doc[row["token"]])
            whole = trace.text[int(trace.start[mine[0]]) : int(trace.end[mine[-1]])].decode()
            assert row["before"] + row["text"] + row["after"] in whole


@pytest.mark.parametrize("case", ["plain", "variable_k", "patches"])
def test_label_profile_is_share_against_base(case: str) -> None:
    trace: Trace = CASES[case]()
    traced = trace.layers[0]
    for name, rows in card(trace, 0, 4)["labels"].items():
        labels = trace.labels[name]
        everywhere: Counter[str] = Counter()
        here: Counter[str] = Counter()
        for token, code in enumerate(labels.codes.tolist()):
            for expert in traced.expert_TK[token].tolist():
                if code >= 0 and expert >= 0:
                    everywhere[labels.names[code]] += 1
                    here[labels.names[code]] += expert == 4
        assert {row["value"] for row in rows} == set(everywhere)
        assert [row["count"] for row in rows] == sorted((row["count"] for row in rows), reverse=True)
        load = sum(here.values()) / sum(everywhere.values())
        for row in rows:
            value, total = row["value"], everywhere[row["value"]]
            assert row["count"] == here[value]
            assert row["share"] == pytest.approx(here[value] / max(sum(here.values()), 1))
            assert row["base"] == pytest.approx(total / sum(everywhere.values()))
            if max(here[value], total * load) < 5:
                assert row["lift"] is None
            else:
                assert row["lift"] == pytest.approx(math.log2((here[value] + load) / (total + 1) / load))


@pytest.mark.parametrize("case", ["plain", "variable_k", "big"])
def test_partners_are_counted_over_all_pairs(case: str) -> None:
    trace: Trace = CASES[case]()
    rows = [set(experts) - {-1} for experts in trace.layers[0].expert_TK.tolist()]
    mine = [row for row in rows if 1 in row]
    together = Counter(other for row in mine for other in row if other != 1)
    found = card(trace, 0, 1)["partners"]
    assert [row["count"] for row in found] == sorted(together.values(), reverse=True)[: len(found)]
    for row in found:
        assert row["p"] == pytest.approx(together[row["expert"]] / len(mine)) and 0 < row["null"] <= 1


def test_partners_of_even_random_routing_are_at_their_null() -> None:
    """(k - 1) / (E - 1) at even load, and observed pairs scatter about it as a binomial does."""
    trace = make_trace(tokens=6000, strength=0.0, k=3, layers=1)
    rng = np.random.default_rng(0)
    even = np.argsort(rng.random((6000, 8)), axis=1)[:, :3].astype(np.int32)
    found = card(with_layers(trace, expert_TK=even), 0, 0)
    assert len(found["partners"]) == 7
    for row in found["partners"]:
        assert row["null"] == pytest.approx(2 / 7, rel=0.05)
        assert stats.binomtest(row["count"], found["assignments"], row["null"]).pvalue > 1e-4


def test_an_expert_without_tokens_has_an_empty_card() -> None:
    idle = with_layers(make_trace(k=1), expert_TK=lambda traced: np.minimum(traced.expert_TK, 6))
    found = card(idle, 0, 7)
    assert (found["assignments"], found["load"], found["entropy"], found["mean_gate"]) == (0, 0, None, None)
    assert found["top_tokens"] == found["contexts"] == found["partners"] == []
    assert all(row["count"] == 0 and row["share"] == 0 for row in found["labels"]["domain"])


@pytest.mark.parametrize("expert", [-1, 8, 1])
def test_an_expert_that_is_not_there_is_refused(expert: int) -> None:
    with pytest.raises(InputError, match=f"Expert {expert} is not one of layer 0's 6 experts"):
        expert_card(CASES["gap_in_experts"](), 0, expert)
