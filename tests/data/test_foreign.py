"""Tokenizers of other families: ranges ascend, never overlap, cover the text, and what covers nothing says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest

from moescope.data.base import Document, Span
from moescope.data.encode import encode
from moescope.data.pieces import Encoder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CORPUS = ["Hello world twice naïve", "end lead literal x Hello world"] * 3
TEXTS = [
    "Hello world  twice\n\tnaïve 😀 的 e\u0301 end ",
    "literal <s> inside x",
    " lead",
    "的",
    "😀😀",
    "naïve" * 3,
]


def sentencepiece(*, prepend: bool) -> Tokenizer:
    """Like Llama's and Mixtral's: blanks as U+2581, one put in front, byte fallback, BOS."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if prepend:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    specials = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, show_progress=False, limit_alphabet=30, initial_alphabet=["▁"]
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    plain = json.loads(tokenizer.to_str())
    plain["added_tokens"] = [token for token in plain["added_tokens"] if not token["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(plain))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def byte_level(*, normal: bool = False, prefix: bool = False) -> Tokenizer:
    """Like GPT-NeoX's and Qwen's: byte-level, BOS and EOS, with or without NFC and a blank in front."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>"], show_progress=False, initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    template = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), template])
    if normal:
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def word_piece() -> Tokenizer:
    """Like BERT's: lower case, accents stripped, white space dropped, unknown characters one token."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=120, special_tokens=["[UNK]", "[CLS]"], show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 1)])
    return tokenizer


FAMILIES: dict[str, Callable[[], Tokenizer]] = {
    "metaspace": lambda: sentencepiece(prepend=False),
    "prepend": lambda: sentencepiece(prepend=True),
    "byte_level": byte_level,
    "nfc": lambda: byte_level(normal=True),
    "prefix_space": lambda: byte_level(prefix=True),
    "word_piece": word_piece,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_ranges_ascend_and_cover_the_text_without_overlap(family: str) -> None:
    tokenizer = FAMILIES[family]()
    for text, pieces in zip(TEXTS, Encoder(tokenizer).encode(TEXTS), strict=True):
        assert pieces.ids.tolist() == tokenizer.encode(text).ids
        assert (pieces.start <= pieces.end).all()
        assert (pieces.end[:-1] <= pieces.start[1:]).all()
        covered = b"".join(text.encode()[a:b] for a, b in zip(pieces.start, pieces.end, strict=True))
        expected = text.encode().rstrip() if family == "word_piece" else text.encode()
        assert covered == expected


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "word_piece"])
def test_byte_tokens_and_halves_of_characters_get_their_own_bytes(family: str) -> None:
    tokenizer = FAMILIES[family]()
    text = "naïve 😀"
    (pieces,) = Encoder(tokenizer).encode([text])
    ranges = [(int(a), int(b)) for a, b in zip(pieces.start, pieces.end, strict=True) if b > a >= 7]
    assert ranges == [(7, 8), (8, 9), (9, 10), (10, 11)]


def test_words_are_found_where_they_stand_in_spite_of_a_normaliser() -> None:
    text = "The NAÏVE\u00a0 HÉllo\n\n  world"
    tokenizer = word_piece()
    tokens = encode([Document("d", text, {}, {"w": [Span(11, 16, "hello"), Span(20, 25, "world")]})], tokenizer)
    label = tokens.labels["w"]
    assert tokens.start is not None and tokens.end is not None
    for word, spelled in (("hello", "HÉllo"), ("world", "world")):
        mine = label.codes == label.names.index(word)
        covered = b"".join(tokens.text[a:b] for a, b in zip(tokens.start[mine], tokens.end[mine], strict=True))
        assert covered.decode().strip() == spelled


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_that_stand_for_no_text_are_empty_and_unlabelled(family: str) -> None:
    tokenizer = FAMILIES[family]()
    documents = [Document("a", "Hello 的", {"k": "x"}, {"s": [Span(0, 7, "all")]}), Document("b", "end", {"k": "y"})]
    tokens = encode(documents, tokenizer)
    assert tokens.start is not None and tokens.end is not None
    empty = tokens.start == tokens.end
    first = np.searchsorted(tokens.doc, [0, 1])
    assert empty[first].all() and tokens.start[first].tolist() == [0, len("Hello 的".encode())]
    for label in tokens.labels.values():
        assert (label.codes[empty] == -1).all()
    assert (tokens.labels["k"].codes[~empty] == tokens.doc[~empty]).all()
    assert (tokens.labels["s"].codes[~empty & (tokens.doc == 0)] == 0).all()


def test_a_transformers_tokenizer_is_taken_as_the_one_it_wraps(tokenizer: Tokenizer) -> None:
    from transformers import PreTrainedTokenizerFast

    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    document = Document("d", "class Reader: the 的 whole")
    assert np.array_equal(encode([document], wrapped).inputs, encode([document], tokenizer).inputs)
