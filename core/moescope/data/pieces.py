"""Tokens of single documents with exact byte offsets, by any tokenizer of the `tokenizers` library."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moescope.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
_BLANK = "\u2581"
_BYTE_LEVEL_BLANK = "\u0120"


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

    Where the tokens' own bytes, one after another, are the document (every byte-level tokenizer without a normaliser,
    and most text with one), the offsets are counted from them: a token that holds half a character gets half of its
    bytes. Elsewhere they are the tokenizer's own, in characters, mended so that no two tokens cover the same byte and
    what it left out belongs to the token behind.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = getattr(tokenizer, "backend_tokenizer", tokenizer)
        self._adds = self._tokenizer.num_special_tokens_to_add(False) > 0
        self._vocab: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        self._bytes, self._lengths = _byte_table(self._tokenizer, self._vocab)

    def encode(self, texts: Sequence[str]) -> list[Pieces]:
        """Tokens of each text, in order. Raises `InputError` where the tokenizer cannot encode them."""
        quick = _done(self._tokenizer.encode_batch_fast, texts)
        counted = [self._count(text, item) for text, item in zip(texts, quick, strict=True)]
        rest = [index for index, pieces in enumerate(counted) if pieces is None]
        found = _done(self._tokenizer.encode_batch, [texts[index] for index in rest]) if rest else []
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
        to_byte = byte_offsets(text)
        chars = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        added = encoding.special_tokens_mask
        ranges = list(zip(to_byte[chars[:, 0]].tolist(), to_byte[chars[:, 1]].tolist(), strict=True))
        widths = [0 if is_added else self._width(token) for token, is_added in zip(encoding.tokens, added, strict=True)]
        blank = [token == _BLANK for token in encoding.tokens]
        start, end = _mended(text.encode(), ranges, widths, blank)
        return Pieces(np.array(encoding.ids, dtype=np.int32), start, end)

    def _width(self, token: str) -> int:
        """How many bytes of text a token spells, as far as its own spelling tells."""
        if _BYTE_TOKEN.fullmatch(token):
            return 1
        if _BYTE_LEVEL_BLANK in self._vocab:
            return int(self._lengths[self._vocab[token]])
        return len(token.replace(_BLANK, " ").encode())


def _done(encode: Callable[[Sequence[str]], list[Any]], texts: Sequence[str]) -> list[Any]:
    try:
        return encode(texts)
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        # the library raises nothing narrower; a regular expression that gives up is a panic of its Rust code
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise InputError(f"the tokenizer cannot encode the text: {reason}.") from None


def _mended(
    text: bytes, ranges: list[tuple[int, int]], widths: list[int], blank: list[bool]
) -> tuple[np.ndarray, np.ndarray]:
    """Byte ranges, made ascending and disjoint: int32 starts and ends.

    A token of width 0 covers nothing. Tokens that share characters share out their bytes by their widths. A blank that
    the tokenizer put before the text covers nothing. What no token covers goes to the next token.
    """
    fixed: list[tuple[int, int]] = []
    reached = 0
    for index, ((start, end), width) in enumerate(zip(ranges, widths, strict=True)):
        following = ranges[index + 1][0] if index + 1 < len(ranges) and widths[index + 1] else end
        start, end = max(start, reached), max(end, reached)
        if width == 0 or (blank[index] and not text[start:end].isspace()):
            start = end = reached
        elif start == end:
            gap = text[reached : max(following, reached)]
            start, end = (
                reached,
                reached + len(gap[:1] if gap[:1].isspace() else gap.split(maxsplit=1)[0] if gap else gap),
            )
        elif start > reached:
            start = reached
        elif end - start > width and following < end:
            end = start + width
        fixed.append((start, end))
        reached = end
    pairs = np.array(fixed, dtype=np.int32).reshape(-1, 2)
    return pairs[:, 0].copy(), pairs[:, 1].copy()


def byte_offsets(text: str) -> np.ndarray:
    """int64 [len(text) + 1]: the byte at which each character starts in UTF-8, and the end."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    widths = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(widths)])


def _byte_table(tokenizer: Tokenizer, vocab: dict[str, int]) -> tuple[list[bytes], np.ndarray]:
    """The bytes that each token id spells in a byte-level vocabulary, and how many; an id without any spells a NUL."""
    alphabet = _byte_alphabet()
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
