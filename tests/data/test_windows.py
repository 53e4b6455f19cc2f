"""Windows join to the document and cut spans with it; interleaving is fair at every prefix."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moescope.data.base import Document, Span
from moescope.data.windows import characters, interleave, source_of, windows

TEXT = st.text(alphabet="ab \n\r😀é", max_size=400)


@given(TEXT, st.integers(2, 90))
@settings(max_examples=150, deadline=None)
def test_windows_join_to_the_document_and_none_is_too_long(text: str, size: int) -> None:
    cut = list(windows(Document("d", text), size))
    assert "".join(part.text for part in cut) == text
    assert all(0 < len(part.text) <= size for part in cut) or text == ""
    assert len({part.id for part in cut}) == len(cut)
    assert {source_of(part.id) for part in cut} == {"d"}


@given(TEXT, st.integers(2, 60), st.data())
@settings(max_examples=150, deadline=None)
def test_every_character_keeps_its_label_when_cut(text: str, size: int, data: st.DataObject) -> None:
    edges = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    spans = [Span(a, b, f"v{a}") for a, b in pairwise(edges) if a < b]
    cut = list(windows(Document("d", text, {"k": "x"}, {"s": spans}), size))
    assert all(part.labels == {"k": "x"} for part in cut)
    whole = per_character(Document("d", text, {}, {"s": spans}))
    assert [label for part in cut for label in per_character(part)] == whole


def per_character(document: Document) -> list[str | None]:
    found: list[str | None] = [None] * len(document.text)
    for span in document.spans["s"]:
        found[span.start : span.end] = [span.value] * (span.end - span.start)
    return found


def test_cuts_fall_after_blank_lines_then_after_lines_then_anywhere() -> None:
    assert [w.text for w in windows(Document("d", "one\n\ntwo\nthree\n"), 8)] == ["one\n\n", "two\n", "three\n"]
    assert [w.text for w in windows(Document("d", "aaaa\nbbbb\ncc"), 8)] == ["aaaa\n", "bbbb\ncc"]
    assert [w.text for w in windows(Document("d", "x" * 10), 4)] == ["xxxx", "xxxx", "xx"]
    assert [w.text for w in windows(Document("d", "abc\r\ndef"), 4)] == ["abc", "\r\n", "def"]


@given(st.lists(st.lists(st.integers(1, 50), max_size=12), min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_interleaved_sources_stay_within_one_document_of_each_other(lengths: list[list[int]]) -> None:
    sources = [[Document(f"{s}-{i}", "x" * n, {"s": str(s)}) for i, n in enumerate(ns)] for s, ns in enumerate(lengths)]
    longest = max((n for ns in lengths for n in ns), default=0)
    given_by: Counter[str] = Counter({str(s): 0 for s in range(len(sources))})
    left = Counter({str(s): len(ns) for s, ns in enumerate(lengths)})
    seen = []
    for document in interleave(map(iter, sources), characters):
        alive = [s for s in given_by if left[s]]
        assert max(given_by[s] for s in alive) - min(given_by[s] for s in alive) <= longest
        given_by[document.labels["s"]] += len(document.text)
        left[document.labels["s"]] -= 1
        seen.append(document.id)
    assert sorted(seen) == sorted(d.id for source in sources for d in source)


@pytest.mark.parametrize("cap", [1, 25, 1000])
def test_a_capped_source_gives_less_than_the_cap_and_one_document(cap: int) -> None:
    merged = interleave([iter([Document(str(i), "x" * 10) for i in range(20)])], characters, cap)
    total = sum(len(document.text) for document in merged)
    assert total == min(200, -(-cap // 10) * 10)
