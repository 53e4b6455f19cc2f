"""Corrupted data: words of a text, pixels of images or whole vectors, replaced by what says nothing."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from moescope.config import Config, doc
from moescope.data.base import Document, Labels, Span, TokenSet
from moescope.data.decode import documents_of, first_tokens, pieces_of
from moescope.data.digits import unpatchify
from moescope.data.encode import assemble
from moescope.data.pieces import Encoder, Pieces
from moescope.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LABEL = "corrupted"
_NAMES = ("no", "yes")
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, kw_only=True)
class CorruptionConfig(Config):
    """How much is corrupted, and by what."""

    share: float = field(
        default=0.025, metadata=doc("share of the words (runs of letters, digits and _), pixels or vectors replaced")
    )
    word: str = field(default="AAA", metadata=doc("what a word is replaced by; text only"))
    seed: int = field(default=0, metadata=doc("which ones are replaced"))

    def __post_init__(self) -> None:
        self.require(0 <= self.share <= 1, "share", "it must lie between 0 and 1.")
        self.require(
            bool(self.word.strip()) and len(self.word) <= 100, "word", "there must be one, of at most 100 characters."
        )
        self.require(self.seed >= 0, "seed", "it must not be negative.")


def corrupted(tokens: TokenSet, config: CorruptionConfig, tokenizer: Tokenizer | None) -> TokenSet:
    """The same documents in the same order, a share of what they are made of replaced, and the label `corrupted`.

    Text: words, by `config.word`; see `corrupted_document`. A document in which none was replaced keeps its tokens; the
    others are encoded anew by `tokenizer`, and a token takes its labels from the characters that it covers.
    Patches: single pixels, each by a uniform random number between the lowest and the highest value of all pixels; the
    images are corrupted with them. Vectors: whole ones, each feature by a uniform random number in its own range.
    Other labels stay those of what was there before.
    Each document's share is rounded at random, and what is replaced in it depends on its name, the seed and nothing
    else; a larger share replaces more of the same. Raises `InputError` for text without a tokenizer.
    """
    if tokens.kind == "text":
        if tokenizer is None:
            raise InputError("Text cannot be corrupted without a tokenizer.")
        return _text(tokens, config, tokenizer)
    return _values(tokens, config)


def corrupted_document(document: Document, config: CorruptionConfig) -> Document:
    """The document with a share of its words replaced, and spans `corrupted` over all of it: yes or no.

    A word is a run of letters, digits and underscores. The new word carries the labels of the first character of the
    old one. What was corrupted before stays so.
    """
    words = [found.span() for found in _WORD.finditer(document.text)]
    picked = [word for word, hit in zip(words, _picked(config, document.id, len(words))[0], strict=True) if hit]
    text, moved = _replaced(document.text, picked, config.word)
    spans = {
        name: [
            Span(start, end, span.value)
            for span in found
            if (start := int(moved[span.start])) < (end := int(moved[span.end]))
        ]
        for name, found in document.spans.items()
    }
    hit = np.zeros(len(text), bool)
    for start, end in [*((moved[start], moved[end]) for start, end in picked), *_before(spans)]:
        hit[start:end] = True
    edges = [0, *(np.flatnonzero(hit[1:] != hit[:-1]) + 1).tolist(), len(text)] if text else [0]
    runs = [Span(start, end, _NAMES[int(hit[start])]) for start, end in pairwise(edges)]
    return replace(document, text=text, spans={**spans, LABEL: runs})


def _before(spans: dict[str, list[Span]]) -> list[tuple[int, int]]:
    return [(span.start, span.end) for span in spans.get(LABEL, ()) if span.value == _NAMES[1]]


def _picked(config: CorruptionConfig, name: str, of: int) -> tuple[np.ndarray, np.random.Generator]:
    """bool [of]: which ones of a document are replaced, and the generator for what else is drawn of it."""
    key = hashlib.blake2b(f"{config.seed}\0{name}".encode(), digest_size=8).digest()
    rng = np.random.default_rng(int.from_bytes(key, "big"))
    count = int(config.share * of + rng.random())
    hit = np.zeros(of, bool)
    hit[rng.permutation(of)[:count]] = True
    return hit, rng


def _replaced(text: str, words: Sequence[tuple[int, int]], new: str) -> tuple[str, np.ndarray]:
    """The text with `words` replaced, and int64 [len(text) + 1]: where the edge before each character moved to.

    An edge inside a replaced word moves behind the new one.
    """
    parts, size, at = [], np.ones(len(text), np.int64), 0
    for start, end in words:
        parts += [text[at:start], new]
        size[start:end] = 0
        size[start] = len(new)
        at = end
    return "".join([*parts, text[at:]]), np.concatenate([[0], np.cumsum(size)])


def _text(tokens: TokenSet, config: CorruptionConfig, tokenizer: Tokenizer) -> TokenSet:
    before = documents_of(tokens)
    after = [corrupted_document(document, config) for document in before]
    pieces = pieces_of(tokens)
    kept = np.array([old.text == new.text for old, new in zip(before, after, strict=True)], bool)
    changed = np.flatnonzero(~kept)
    encoded = Encoder(tokenizer).encode([after[index].text for index in changed])
    for index, anew in zip(changed, encoded, strict=True):
        pieces[index] = _some(anew, after[index], config)
    found = assemble(list(zip(after, pieces, strict=True)), _source(tokens, config))
    same = kept[found.doc], kept[tokens.doc]
    labels = {
        name: _as_before(found.labels.get(name), old, same) for name, old in tokens.labels.items() if name != LABEL
    }
    labels[LABEL] = _renamed(found.labels.get(LABEL), _NAMES, found.num_tokens)
    return replace(found, labels=labels, target=tokens.target, values=tokens.values)


def _some(pieces: Pieces, document: Document, config: CorruptionConfig) -> Pieces:
    if not len(pieces):
        raise InputError(f"{document.id}: the tokenizer has no token for anything in it once {config.word!r} is there.")
    return pieces


def _renamed(labels: Labels | None, names: tuple[str, ...], num_tokens: int) -> Labels:
    """The labels with the codes of `names`, which hold all of theirs; none has one where `labels` is None."""
    if labels is None:
        return Labels(np.full(num_tokens, -1, np.int16), names, "token")
    code = np.array([*map(names.index, labels.names), -1], np.int16)
    return Labels(code[labels.codes], names, labels.scope)


def _as_before(labels: Labels | None, old: Labels, same: tuple[np.ndarray, np.ndarray]) -> Labels:
    """The labels with the names they had; `same`: tokens, now and then, of documents that did not change."""
    found = _renamed(labels, old.names, len(same[0]))
    found.codes[same[0]] = old.codes[same[1]]
    return replace(found, scope=old.scope)


def _source(tokens: TokenSet, config: CorruptionConfig) -> dict[str, Any]:
    """What the data was; its lowest loss, if it was known, is another's."""
    clean = {name: value for name, value in tokens.source.items() if name != "floor"}
    told = {"share": config.share, "seed": config.seed}
    return {**clean, LABEL: {**told, "word": config.word} if tokens.kind == "text" else told}


def _values(tokens: TokenSet, config: CorruptionConfig) -> TokenSet:
    num, width = tokens.inputs.shape
    names = tokens.source.get("documents") or range(tokens.num_docs)
    pixels = tokens.kind == "patches"
    axis = None if pixels else 0
    low, high = tokens.inputs.min(axis=axis), tokens.inputs.max(axis=axis)
    hit, inputs = np.zeros((num, width), bool), tokens.inputs.copy()
    first = first_tokens(tokens)
    for name, start, end in zip(names, first[:-1], first[1:], strict=True):
        picked, rng = _picked(config, str(name), int(end - start) * (width if pixels else 1))
        here = picked.reshape(end - start, -1)
        noise = low + (high - low) * rng.random((end - start, width))
        inputs[start:end] = np.where(here, noise, inputs[start:end])
        hit[start:end] = here
    before = tokens.labels[LABEL].codes == 1 if LABEL in tokens.labels else np.zeros(num, bool)
    marked = np.where(hit.any(axis=1) | before, 1, 0).astype(np.int16)
    return replace(
        tokens,
        inputs=inputs,
        labels={**tokens.labels, LABEL: Labels(marked, _NAMES, "token")},
        source=_source(tokens, config),
        images=None if tokens.images is None else _images(tokens.images, tokens.inputs, inputs, hit),
    )


def _images(images: np.ndarray, before: np.ndarray, after: np.ndarray, hit: np.ndarray) -> np.ndarray:
    """The images with the pixels that were hit as bright as the data's range says. Raises `InputError` where the
    patches of all images are not squares that tile them, row by row."""
    num, height, width = images.shape
    side = math.isqrt(before.shape[1])
    tiles = height % side == 0 and width % side == 0 and before.size == images.size
    if side * side != before.shape[1] or not tiles:
        raise InputError(
            f"Images of {height} x {width} pixels are not made of these patches, so that they cannot be corrupted."
        )
    laid = (num, -1, side * side)
    hit_NHW = unpatchify(hit.reshape(laid), height, width)
    value_NHW = unpatchify(after.reshape(laid), height, width)
    low, high = float(before.min()), float(before.max())
    dark, bright = float(images.min()), float(images.max())
    shown = dark + (value_NHW - low) / max(high - low, 1e-30) * (bright - dark)
    return np.where(hit_NHW, np.rint(shown), images).astype(np.uint8)
