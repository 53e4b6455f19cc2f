"""Tokens of single documents with exact byte offsets, by any tokenizer of the `tokenizers` library."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True)
class Pieces:
    """The tokens of one document: ids, and byte offsets into its UTF-8 text, each int32 [tokens].

    A token that the tokenizer put in by itself (BOS, EOS) covers nothing: start == end.
    """

    ids: np.ndarray
    start: np.ndarray
    end: np.ndarray

    def __len__(self) -> int:
        return int(self.ids.shape[0])


class Encoder:
    """Encodes documents with a tokenizer.

    Where the tokens' own bytes, one after another, are the document (every byte-level tokenizer without a normaliser),
    the offsets are counted from them: a token that holds half a character gets half of its bytes. Elsewhere the offsets
    are the tokenizer's, in whole characters; byte tokens like `<0xE2>` still get one byte each.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = getattr(tokenizer, "backend_tokenizer", tokenizer)
        self._adds = self._tokenizer.num_special_tokens_to_add(False) > 0
        self._bytes, self._lengths = _byte_table(self._tokenizer)

    def encode(self, texts: Sequence[str]) -> list[Pieces]:
        """Tokens of each text, in order."""
        counted = [
            self._count(text, item) for text, item in zip(texts, self._tokenizer.encode_batch_fast(texts), strict=True)
        ]
        rest = [index for index, pieces in enumerate(counted) if pieces is None]
        found = self._tokenizer.encode_batch([texts[index] for index in rest]) if rest else []
        aligned = {index: self._align(texts[index], item) for index, item in zip(rest, found, strict=True)}
        return [aligned[index] if pieces is None else pieces for index, pieces in enumerate(counted)]

    def _count(self, text: str, encoding: Any) -> Pieces | None:
        ids = np.array(encoding.ids, dtype=np.int32)
        lengths = self._lengths[ids]
        if self._adds:
            added = np.array(encoding.special_tokens_mask, dtype=bool)
            lengths[added] = 0
            spelled = b"".join(self._bytes[i] for i in ids[~added])
        else:
            spelled = b"".join([self._bytes[i] for i in encoding.ids])
        if spelled != text.encode():
            return None
        end = np.cumsum(lengths, dtype=np.int32)
        return Pieces(ids, end - lengths, end)

    def _align(self, text: str, encoding: Any) -> Pieces:
        ids = np.array(encoding.ids, dtype=np.int32)
        chars = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        chars[np.array(encoding.special_tokens_mask, dtype=bool)] = 0
        to_byte = byte_offsets(text)
        start, end = to_byte[chars[:, 0]], to_byte[chars[:, 1]]
        _split_byte_tokens(encoding.tokens, start, end)
        empty = start == end
        # What covers nothing stands where the text before it ends.
        reached = np.maximum.accumulate(np.where(empty, 0, end))
        start[empty] = end[empty] = reached[empty]
        return Pieces(ids, start.astype(np.int32), end.astype(np.int32))


def byte_offsets(text: str) -> np.ndarray:
    """int64 [len(text) + 1]: the byte at which each character starts in UTF-8, and the end."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    widths = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(widths)])


def _split_byte_tokens(tokens: Sequence[str], start: np.ndarray, end: np.ndarray) -> None:
    """Give each of n byte tokens that share one character of n bytes its own byte, in place."""
    index = 0
    while index < len(tokens):
        last = index
        while last < len(tokens) and _BYTE_TOKEN.fullmatch(tokens[last]) and start[last] == start[index]:
            last += 1
        if last - index > 1 and end[index] - start[index] == last - index:
            start[index:last] = start[index] + np.arange(last - index)
            end[index:last] = start[index:last] + 1
        index = max(last, index + 1)


def _byte_table(tokenizer: Tokenizer) -> tuple[list[bytes], np.ndarray]:
    """The bytes that each token id spells in a byte-level vocabulary, and how many; an id without any spells a NUL."""
    alphabet = _byte_alphabet()
    vocab: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    table = [b"\0"] * (max(vocab.values(), default=-1) + 1)
    for token, index in vocab.items():
        try:
            table[index] = bytes(map(alphabet.__getitem__, token))
        except KeyError:
            continue
    for index, added in tokenizer.get_added_tokens_decoder().items():
        table[index] = added.content.encode()
    return table, np.array([len(item) for item in table], dtype=np.int32)


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's stand-in for each byte: itself where printable in Latin-1, else the next one from U+0100."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in plain)
    return {chr(byte): byte for byte in plain} | {chr(0x100 + index): byte for index, byte in enumerate(others)}
