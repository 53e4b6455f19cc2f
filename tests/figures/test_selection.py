"""The selection card against counting one by one."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from moescope.errors import InputError
from moescope.figures.cards.selection import expert_tokens, selection_card
from synthetic import make_trace

TRACE = make_trace(tokens=600, layers=2, experts=6, k=2)


def test_shares_are_those_of_counting_by_hand() -> None:
    chosen = [3, 500, 17, 18, 19, 400, 3]
    card = selection_card(TRACE, chosen)
    assert (card["n"], card["total"]) == (6, 600)
    for layer in card["layers"]:
        expert_TK = TRACE.layers[layer["layer"]].expert_TK
        mine = Counter(int(e) for token in set(chosen) for e in expert_TK[token])
        everything = Counter(expert_TK.ravel().tolist())
        for row in layer["experts"]:
            assert row["share"] == pytest.approx(mine[row["expert"]] / 12)
            assert row["base"] == pytest.approx(everything[row["expert"]] / 1200)


def test_labels_leave_unlabelled_tokens_out() -> None:
    syntax = TRACE.labels["syntax"]
    chosen = list(range(0, 600, 7))
    mine = Counter(syntax.names[syntax.codes[t]] for t in chosen if syntax.codes[t] >= 0)
    everything = Counter(syntax.names[c] for c in syntax.codes if c >= 0)
    labelled, total = sum(mine.values()), sum(everything.values())
    assert 0 < labelled < len(chosen)
    for row in selection_card(TRACE, chosen)["labels"]["syntax"]:
        count, base = mine[row["value"]], everything[row["value"]] / total
        assert row["count"] == count
        assert row["share"] == pytest.approx(count / labelled)
        assert row["base"] == pytest.approx(base)
        assert row["lift"] == pytest.approx(math.log2((count + base) / (labelled + 1) / base))


def test_the_whole_trace_prefers_nothing() -> None:
    card = selection_card(TRACE, range(600))
    for layer in card["layers"]:
        assert all(row["share"] == pytest.approx(row["base"]) for row in layer["experts"])
    assert all(abs(row["lift"]) < 0.02 for row in card["labels"]["domain"])


def test_one_token_is_too_little_to_compare() -> None:
    token = int(np.flatnonzero(TRACE.labels["syntax"].codes < 0)[0])
    card = selection_card(TRACE, [token])
    assert all(row["lift"] is None for rows in card["labels"].values() for row in rows)
    assert all(row["share"] is None for row in card["labels"]["syntax"])


@pytest.mark.parametrize(("tokens", "words"), [([], "no token"), ([600], "Token 600"), ([-1, 5], "Token -1")])
def test_a_selection_outside_the_trace_is_refused(tokens: list[int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        selection_card(TRACE, tokens)


def test_an_experts_tokens_on_the_map_are_those_that_chose_it() -> None:
    assert TRACE.sample is not None
    for expert in range(6):
        found = expert_tokens(TRACE, 1, expert)
        chose = {int(t): TRACE.layers[1].expert_TK[t].tolist() for t in TRACE.sample}
        assert found["first"] == [t for t, experts in chose.items() if experts[0] == expert]
        assert found["other"] == [t for t, experts in chose.items() if expert in experts[1:]]
    with pytest.raises(InputError, match="Expert 6"):
        expert_tokens(TRACE, 1, 6)
