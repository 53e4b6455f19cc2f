"""Chunks and batches of a TokenSet: every token once, never across a document, targets by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moescope.data.base import TokenSet
from moescope.model import IGNORED, collate, sequences


def text(*lengths: int) -> TokenSet:
    """Documents of these lengths (0: a document without tokens), token ids 100, 101, ..."""
    doc = np.repeat(np.arange(len(lengths)), lengths).astype(np.int32)
    inputs = (100 + np.arange(len(doc))).astype(np.int32)
    return TokenSet(kind="text", inputs=inputs, doc=doc, labels={}, source={})


def rows(lengths: list[int], width: int, classes: list[int] | None) -> TokenSet:
    doc = np.repeat(np.arange(len(lengths)), lengths).astype(np.int32)
    inputs = np.arange(len(doc) * width, dtype=np.float32).reshape(len(doc), width)
    target = None if classes is None else np.array(classes, np.int64)
    return TokenSet(kind="vectors", inputs=inputs, doc=doc, labels={}, source={}, target=target)


@settings(derandomize=True, deadline=None)
@given(lengths=st.lists(st.integers(0, 20), max_size=12), max_seq=st.integers(1, 9))
def test_chunks_cover_every_token_once_in_order_within_one_document(lengths: list[int], max_seq: int) -> None:
    tokens = text(*lengths)
    chunks = sequences(tokens, max_seq)
    assert [t for start, length in chunks for t in range(start, start + length)] == list(range(tokens.num_tokens))
    for start, length in chunks:
        assert 1 <= length <= max_seq
        assert len(set(tokens.doc[start : start + length].tolist())) == 1
    assert len(chunks) == sum(-(-length // max_seq) for length in lengths), "chunks are as long as they can be"


def test_next_tokens_stop_at_the_document_and_go_on_past_the_chunk() -> None:
    tokens = text(5, 2, 1)
    chunks = sequences(tokens, 3)
    assert chunks == [(0, 3), (3, 2), (5, 2), (7, 1)]
    batch = collate(tokens, chunks)
    none = IGNORED
    assert batch.inputs.tolist() == [[100, 101, 102], [103, 104, 0], [105, 106, 0], [107, 0, 0]]
    assert batch.valid.tolist() == [[True, True, True], [True, True, False], [True, True, False], [True, False, False]]
    assert batch.target is not None
    assert batch.target.tolist() == [[101, 102, 103], [104, none, none], [106, none, none], [none, none, none]]
    assert batch.inputs.dtype == batch.target.dtype == torch.int64


def test_vectors_take_the_class_of_their_document() -> None:
    tokens = rows([2, 3], 4, [7, 9])
    batch = collate(tokens, [(2, 3), (0, 2)])
    assert batch.target is not None and batch.target.tolist() == [9, 7]
    assert batch.inputs.shape == (2, 3, 4) and batch.inputs.dtype == torch.float32
    assert batch.inputs[1, 2].tolist() == [0, 0, 0, 0] and batch.inputs[0, 0].tolist() == [8, 9, 10, 11]
    assert collate(rows([2, 3], 4, None), [(0, 2)]).target is None


@pytest.mark.parametrize("kind", ["text", "vectors"])
def test_batches_do_not_share_memory_with_the_token_set(kind: str) -> None:
    tokens = text(4) if kind == "text" else rows([4], 2, None)
    batch = collate(tokens, [(0, 4)])
    batch.inputs.zero_()
    assert (tokens.inputs[1:] != 0).all()
