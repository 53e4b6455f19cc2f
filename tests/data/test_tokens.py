"""Choosing documents of a TokenSet keeps everything about them; splitting loses and shares nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from moescope.data.base import Document, Span, TokenSet
from moescope.data.digits import DigitsConfig, DigitsCorpus
from moescope.data.encode import encode
from moescope.data.tokens import content_hash, select, split, take
from moescope.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

DOCUMENTS = [
    Document(f"file{i // 2}#{i % 2}", f"Document {i}: naïve 😀 {text}", {"k": "ab"[i % 2]}, {"s": [Span(0, 8, "D")]})
    for i, text in enumerate(["one", "one two", "one two three"] * 4)
]


@pytest.fixture
def tokens(tokenizer: Tokenizer) -> TokenSet:
    return encode(DOCUMENTS, tokenizer)


@pytest.mark.parametrize("chosen", [[0], [11], [3, 4, 9], list(range(12)), [7, 2, 2], []])
def test_chosen_documents_are_as_if_encoded_alone(tokenizer: Tokenizer, tokens: TokenSet, chosen: list[int]) -> None:
    found = select(tokens, np.array(chosen, dtype=int))
    alone = encode([DOCUMENTS[i] for i in sorted(set(chosen))], tokenizer)
    assert found.text == alone.text and found.source["documents"] == alone.source["documents"]
    for name in ("inputs", "doc", "start", "end"):
        assert np.array_equal(getattr(found, name), getattr(alone, name))
    for name, label in alone.labels.items():
        mine = found.labels[name]
        assert [mine.names[c] for c in mine.codes if c >= 0] == [label.names[c] for c in label.codes if c >= 0]
        assert np.array_equal(mine.codes >= 0, label.codes >= 0)


def test_take_is_a_slice_and_wrong_documents_are_an_error(tokens: TokenSet) -> None:
    assert take(tokens, 2, 5).source["documents"] == [d.id for d in DOCUMENTS[2:5]]
    assert take(tokens, -2, 99).num_docs == 2
    with pytest.raises(IndexError):
        select(tokens, np.array([12]))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.01, 0.3, 0.9])
def test_a_split_parts_all_documents_and_keeps_files_together(tokens: TokenSet, share: float, seed: int) -> None:
    train, held = split(tokens, share, seed)
    names = [set(part.source["documents"]) for part in (train, held)]
    assert not names[0] & names[1] and names[0] | names[1] == {d.id for d in DOCUMENTS}
    assert train.num_tokens + held.num_tokens == tokens.num_tokens and min(train.num_docs, held.num_docs) >= 2
    assert not {n.split("#")[0] for n in names[0]} & {n.split("#")[0] for n in names[1]}
    again = split(tokens, share, seed)
    assert content_hash(again[0]) == content_hash(train) and content_hash(again[1]) == content_hash(held)


def test_splits_follow_the_seed(tokens: TokenSet) -> None:
    assert len({tuple(split(tokens, 0.3, seed)[1].source["documents"]) for seed in range(8)}) > 3


def test_windows_of_a_single_file_are_split_and_a_single_document_cannot_be(tokenizer: Tokenizer) -> None:
    one_file = encode([Document(f"f#{i}", "some text") for i in range(4)], tokenizer)
    train, held = split(one_file, 0.3)
    assert (train.num_docs, held.num_docs) == (2, 2)
    with pytest.raises(InputError, match="single document"):
        split(encode([Document("f", "some text")], tokenizer))


def test_images_and_targets_go_with_their_documents() -> None:
    tokens = DigitsCorpus(DigitsConfig()).token_set()
    chosen = select(tokens, np.array([5, 900]))
    assert tokens.images is not None and tokens.target is not None and chosen.images is not None
    assert np.array_equal(chosen.images, tokens.images[[5, 900]])
    assert np.array_equal(chosen.target, tokens.target[[5, 900]])
    assert np.array_equal(chosen.inputs, np.concatenate([tokens.inputs[80:96], tokens.inputs[14400:14416]]))


def test_the_hash_names_the_content_and_not_where_it_came_from(tokens: TokenSet) -> None:
    assert content_hash(tokens) == content_hash(replace(tokens, source={"corpus": "other"}))
    other = tokens.inputs.copy()
    other[3] += 1
    label = tokens.labels["k"]
    changed = [
        replace(tokens, inputs=other),
        replace(tokens, text=tokens.text[:-1] + b"?"),
        replace(tokens, labels={}),
        replace(tokens, labels={**tokens.labels, "k": replace(label, names=("a", "c"))}),
        replace(tokens, labels={"j": label, "s": tokens.labels["s"]}),
        replace(tokens, target=np.zeros(12, np.int64)),
    ]
    assert len({content_hash(item) for item in (tokens, *changed)}) == 7
