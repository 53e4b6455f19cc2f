"""Windows, documents and search give back the trace as it is."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from figure_cases import CASES
from moescope.errors import InputError
from moescope.figures.cards import documents, search, token_window
from moescope.trace.schema import Trace
from synthetic import make_trace


@pytest.mark.parametrize("case", CASES)
def test_a_window_is_the_trace_token_by_token(case: str) -> None:
    trace: Trace = CASES[case]()
    layer, start = trace.layer_ids[-1], 37
    window = json.loads(json.dumps(token_window(trace, layer, start, 150), allow_nan=False))
    traced = trace.layers[layer]
    assert (window["start"], window["total"], len(window["text"])) == (37, trace.num_tokens, 150)
    sampled = set() if trace.sample is None else set(trace.sample.tolist())
    for place in range(150):
        token = start + place
        slots = [i for i, e in enumerate(traced.expert_TK[token]) if e >= 0]
        assert window["experts"][place] == [traced.expert_TK[token, i] for i in slots]
        assert window["gates"][place] == pytest.approx([traced.gate_TK[token, i] for i in slots], abs=1e-5)
        assert window["dropped"][place] == [not traced.sent_TK[token, i] for i in slots]
        assert window["doc"][place] == trace.doc[token] and window["in_map"][place] == (token in sampled)
        for name, labels in trace.labels.items():
            assert window["labels"][name][place] == labels.codes[token]
        if trace.start is not None:
            assert window["text"][place] == trace.token_text(token)


def test_a_window_lists_the_documents_it_touches() -> None:
    trace = make_trace()
    window = token_window(trace, 0, 150, 200)
    touched = sorted(set(trace.doc[150:350].tolist()))
    assert [d["index"] for d in window["documents"]] == touched
    for found in window["documents"]:
        assert trace.doc[found["start"]] == found["index"] and found["name"] == f"doc{found['index']}"
        assert found["start"] == 0 or trace.doc[found["start"] - 1] != found["index"]


def test_the_last_window_ends_with_the_trace() -> None:
    window = token_window(make_trace(), 0, 1990, 500)
    assert len(window["text"]) == len(window["experts"]) == len(window["in_map"]) == 10


@pytest.mark.parametrize(("start", "count"), [(-1, 10), (2000, 10), (0, 0), (0, 5001)])
def test_windows_outside_the_trace_are_refused(start: int, count: int) -> None:
    with pytest.raises(InputError, match=r"(start|count) = "):
        token_window(make_trace(), 0, start, count)


def test_documents_cover_the_trace_and_carry_their_own_labels() -> None:
    trace = CASES["variable_k"]()
    listed = documents(trace)
    assert sum(d["tokens"] for d in listed) == trace.num_tokens
    for found in listed:
        rows = np.flatnonzero(trace.doc == found["index"])
        assert (rows[0], len(rows)) == (found["start"], found["tokens"])
        domain = trace.labels["domain"]
        expected = {"domain": domain.names[domain.codes[rows[0]]]}
        if found["index"] % 2 == 0:
            expected["half"] = expected["domain"]
        assert found["labels"] == expected


def test_documents_without_tokens_are_not_listed() -> None:
    trace = make_trace(tokens=60, docs=5)
    skipped = dataclasses.replace(trace, doc=np.where(trace.doc >= 2, trace.doc + 3, trace.doc))
    assert [d["index"] for d in documents(skipped)] == [0, 1, 5, 6, 7]
    assert [d["name"] for d in documents(skipped)][-1] == "document 7"


def made_of(pieces: list[str], doc: list[int]) -> Trace:
    """A text of exactly these tokens."""
    trace = make_trace(tokens=len(pieces), docs=max(doc) + 1, sample=1)
    ends = np.cumsum([len(p.encode()) for p in pieces]).astype(np.int32)
    return dataclasses.replace(
        trace, doc=np.array(doc, np.int32), text="".join(pieces).encode(), end=ends,
        start=np.r_[0, ends[:-1]].astype(np.int32),
    )  # fmt: skip


def by_loop(pieces: list[str], doc: list[int], q: str) -> list[int]:
    """Tokens in which a match begins: every document's text searched from every place, not overlapping."""
    found = []
    for index in sorted(set(doc)):
        owners = [i for i, d in enumerate(doc) if d == index for _ in pieces[i]]
        text = "".join(pieces[i] for i, d in enumerate(doc) if d == index)
        place = 0
        while place + len(q) <= len(text):
            if text[place : place + len(q)].lower() == q.lower():
                found.append(owners[place])
                place += len(q)
            else:
                place += 1
    return sorted(set(found))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(["a", "B", "ab", " é", "日本", "b ", "€a", "🙂", "."]), min_size=1, max_size=30), st.data()
)
def test_search_finds_what_a_loop_finds(pieces: list[str], data: Any) -> None:
    doc = sorted(data.draw(st.lists(st.integers(0, 2), min_size=len(pieces), max_size=len(pieces))))
    doc = np.unique(doc, return_inverse=True)[1].tolist()
    q = data.draw(st.text(st.sampled_from("aAbBé日🙂 ."), min_size=1, max_size=3))
    answer = search(made_of(pieces, doc), q)
    assert answer["matches"] == by_loop(pieces, doc, q) and answer["total"] == len(answer["matches"])


def test_search_is_plain_text_within_documents() -> None:
    trace = made_of(["a.c", "abc", "x", "yz", "end"], [0, 0, 0, 1, 1])
    assert search(trace, "a.c") == {"matches": [0], "total": 1}
    assert search(trace, "xy")["total"] == 0
    assert search(trace, "CX") == {"matches": [1], "total": 1}
    assert search(trace, "ZEND") == {"matches": [3], "total": 1}
    assert search(trace, "") == {"matches": [], "total": 0}
    assert search(make_trace(), "licence", limit=3)["matches"] == search(make_trace(), "licence")["matches"][:3]


def test_search_survives_text_that_is_not_utf8() -> None:
    trace = made_of(["ab", "cd", "ef"], [0, 0, 0])
    assert search(dataclasses.replace(trace, text=b"a\xff\xc3d\xe9f"), "D") == {"matches": [1], "total": 1}


def test_what_is_not_text_is_searched_by_document() -> None:
    trace = CASES["patches"]()
    assert search(trace, "Document 1")["matches"] == [16, *(16 * i for i in range(10, 20))]
