"""Tokens spell the documents byte for byte, and each carries the label of the text it covers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moescope.data.base import Document, Labels, Span, TokenSet
from moescope.data.encode import encode
from moescope.data.pieces import byte_offsets
from moescope.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

HARD = [
    "plain",
    "two  spaces\tand\n\n\nlines",
    "CR LF\r\nand CR\rand \x0b\x0c",
    "naïve e\u0301 combining, 的漢字, 😀👩‍👩‍👧 emoji, \u2028 \ufeff \x00",
    "<pad><eos> spelled in the text <eos>",
    " leading and trailing ",
    "\n",
]


def spelled(tokens: TokenSet) -> bytes:
    assert tokens.start is not None and tokens.end is not None
    return b"".join(tokens.text[a:b] for a, b in zip(tokens.start, tokens.end, strict=True))


def test_tokens_put_together_are_the_documents_byte_for_byte(tokenizer: Tokenizer) -> None:
    tokens = encode([Document(str(i), text) for i, text in enumerate(HARD)], tokenizer)
    assert tokens.text == "".join(HARD).encode() == spelled(tokens)
    for index, text in enumerate(HARD):
        assert tokens.start is not None and tokens.end is not None
        of = tokens.doc == index
        assert tokens.text[tokens.start[of][0] : tokens.end[of][-1]] == text.encode()


@given(st.lists(st.text(max_size=40), max_size=5))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_round_trips_and_offsets_agree_with_the_ids(tokenizer: Tokenizer, texts: list[str]) -> None:
    tokens = encode([Document(str(i), text) for i, text in enumerate(texts)], tokenizer)
    kept = [text for text in texts if text]
    assert spelled(tokens) == tokens.text == "".join(kept).encode()
    assert tokens.num_docs == len(kept)
    for index, text in enumerate(kept):
        ids = tokens.inputs[tokens.doc == index].tolist()
        assert ids == tokenizer.encode(text).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_a_character_of_four_bytes_is_split_where_its_tokens_are(tokenizer: Tokenizer) -> None:
    text = "\U0001f9ff"
    tokens = encode([Document("d", text)], tokenizer)
    assert tokens.num_tokens > 1
    assert tokens.start is not None and tokens.end is not None
    raw = text.encode()
    for id, start, end in zip(tokens.inputs, tokens.start, tokens.end, strict=True):
        assert end > start
        assert tokenizer.decode([int(id)]) in (raw[start:end].decode(errors="replace"), "\ufffd")
    assert tokens.end.tolist() == [*tokens.start[1:].tolist(), 4]


def test_a_text_that_spells_a_special_token_is_plain_text(tokenizer: Tokenizer) -> None:
    tokens = encode([Document("d", "a <eos> b")], tokenizer)
    assert not np.isin(tokens.inputs, [0, 1]).any()


def labelled(tokens: TokenSet, name: str) -> list[tuple[str, str | None]]:
    assert tokens.start is not None and tokens.end is not None
    labels: Labels = tokens.labels[name]
    pieces = [tokens.text[a:b].decode(errors="replace") for a, b in zip(tokens.start, tokens.end, strict=True)]
    return [(p, labels.names[c] if c >= 0 else None) for p, c in zip(pieces, labels.codes, strict=True)]


def test_a_token_takes_the_label_of_its_first_byte_that_is_not_space(byte_words: Tokenizer) -> None:
    #       0123456789
    text = "ab cd  ef\n  gh"
    spans = [Span(0, 2, "A"), Span(3, 4, "C"), Span(4, 9, "D"), Span(9, 12, "gap")]
    tokens = encode([Document("d", text, {}, {"s": spans})], byte_words)
    assert labelled(tokens, "s") == [("ab", "A"), (" cd", "C"), (" ", "D"), (" ef", "D"), ("\n ", "gap"), (" gh", None)]
    assert tokens.labels["s"].scope == "token"


@pytest.fixture(scope="module")
def byte_words() -> Tokenizer:
    """Byte-level, one token per piece of the pre-tokenizer of 'ab cd  ef\\n  gh', 'né 😀x' and '的的'."""
    from moescope.data.tokenizer import train_tokenizer

    return train_tokenizer([Document("d", "ab cd  ef\n  gh né 😀x 的的" + " ab cd  ef\n  gh né 😀x 的的" * 50)], 400)


def test_labels_are_aligned_by_characters_through_multibyte_text(byte_words: Tokenizer) -> None:
    text = "né 😀x 的的"
    spans = [Span(0, 2, "word"), Span(3, 4, "emoji"), Span(4, 5, "x"), Span(6, 8, "han")]
    tokens = encode([Document("a", "ab", {}, {}), Document("d", text, {}, {"s": spans})], byte_words)
    found = labelled(tokens, "s")
    assert found[0] == ("ab", None)
    assert [value for _, value in found[1:]].count(None) == 0
    # Each byte's label, by the token that holds it, is that of the token's first ink.
    at = byte_offsets(text)
    for (piece, value), start in zip(found[1:], tokens.start[1:] - 2, strict=True):  # type: ignore[index]
        ink = start + (1 if piece.startswith(" ") else 0)
        assert value == next(span.value for span in spans if at[span.start] <= ink < at[span.end])


def test_document_labels_are_missing_where_a_document_has_none(tokenizer: Tokenizer) -> None:
    documents = [Document("a", "one", {"k": "x"}), Document("b", "two two"), Document("c", "three", {"k": "w"})]
    tokens = encode(documents, tokenizer)
    label = tokens.labels["k"]
    assert label.scope == "document" and label.names == ("w", "x")
    assert [set(label.codes[tokens.doc == i].tolist()) for i in range(3)] == [{1}, {-1}, {0}]
    assert label.codes.dtype == np.int16


def test_a_span_outside_of_every_token_rule_cannot_slip_in(tokenizer: Tokenizer) -> None:
    for spans in ([Span(0, 3, "a"), Span(2, 4, "b")], [Span(0, 9, "a")], [Span(-1, 2, "a")]):
        with pytest.raises(InputError, match="overlap or reach outside"):
            encode([Document("d", "text", {}, {"s": spans})], tokenizer)
    with pytest.raises(InputError, match="both for whole documents and for parts"):
        encode([Document("d", "text", {"s": "x"}, {"s": [Span(0, 1, "a")]})], tokenizer)


@pytest.mark.parametrize("most", range(1, 40))
def test_a_cut_is_a_prefix_that_splits_no_character(tokenizer: Tokenizer, most: int) -> None:
    documents = [
        Document("a", "First 的 document.\n", {"k": "x"}, {"s": [Span(0, 5, "A"), Span(6, 18, "B")]}),
        Document("b", "Second 😀😀 one, ein zweiter.", {"k": "y"}, {"s": [Span(0, 9, "C"), Span(9, 20, "D")]}),
    ]
    whole, cut = encode(documents, tokenizer), encode(documents, tokenizer, most)
    assert max(0, min(most, whole.num_tokens) - 3) <= cut.num_tokens <= most
    assert whole.text.startswith(cut.text) and spelled(cut) == cut.text
    assert cut.text.decode().encode() == cut.text
    assert np.array_equal(cut.inputs, whole.inputs[: cut.num_tokens])
    for name in cut.labels:
        assert labelled(cut, name) == labelled(whole, name)[: cut.num_tokens]


def test_nothing_gives_an_empty_set(tokenizer: Tokenizer) -> None:
    tokens = encode([Document("empty", "")], tokenizer)
    assert (tokens.num_tokens, tokens.num_docs, tokens.text) == (0, 0, b"")
    assert tokens.source["documents"] == []


@given(st.text(max_size=60))
def test_byte_offsets_are_those_of_utf8(text: str) -> None:
    assert byte_offsets(text).tolist() == [len(text[:i].encode()) for i in range(len(text) + 1)]
