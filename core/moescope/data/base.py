"""Corpora, and the one thing that training and tracing read: a TokenSet, T tokens with labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from moescope.config import Config as ConfigBase

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Kind = Literal["text", "patches", "vectors"]
Scope = Literal["token", "document"]


@dataclass(frozen=True, slots=True)
class Span:
    """Characters [start, end) of a document's text carry `value`; characters in no span are unlabelled."""

    start: int
    end: int
    value: str


@dataclass(frozen=True)
class Document:
    """A text with labels: `labels` hold for all of it, `spans` for parts of it, by character offset."""

    id: str
    text: str
    labels: Mapping[str, str] = field(default_factory=dict)
    spans: Mapping[str, Sequence[Span]] = field(default_factory=dict)


@dataclass(frozen=True)
class Labels:
    """One label per token. `codes` is int16 [T], an index into `names`, -1 where a token is unlabelled.

    `scope` says what may be permuted under the null: labels of whole documents, or labels of single tokens.
    """

    codes: np.ndarray
    names: tuple[str, ...]
    scope: Scope


@dataclass(frozen=True)
class TokenSet:
    """T tokens in document order, ready for a model.

    kind:    "text" (ids), "patches" or "vectors" (rows of floats).
    inputs:  int32 [T] token ids for text, float32 [T, d_in] otherwise.
    doc:     int32 [T], index of each token's document, non-decreasing.
    labels:  name to Labels.
    source:  what the data was: corpus name, its configuration, `synthetic` (bool), document names.
    text:    UTF-8 bytes of all documents, one after another (text only).
    start, end: int32 [T], byte offsets into `text` (text only). Byte-level tokens may split a character. A token that
             the tokenizer put in by itself (BOS, EOS) covers no text: start == end, and it is unlabelled throughout.
    target:  int64 [num_docs], class per document where there is one (digits, clusters).
    values:  float32 [num_docs, m], numbers to be predicted per document where there are any (regressions).
    images:  uint8 [num_docs, H, W], what a person would look at (patches only).
    """

    kind: Kind
    inputs: np.ndarray
    doc: np.ndarray
    labels: Mapping[str, Labels]
    source: Mapping[str, Any]
    text: bytes = b""
    start: np.ndarray | None = None
    end: np.ndarray | None = None
    target: np.ndarray | None = None
    values: np.ndarray | None = None
    images: np.ndarray | None = None

    @property
    def num_tokens(self) -> int:
        return int(self.doc.shape[0])

    @property
    def num_docs(self) -> int:
        return int(self.doc[-1]) + 1 if self.num_tokens else 0


@dataclass(frozen=True)
class LabelSource:
    """A label that a model reads, by name, and its values: what index `values` holds, in any data."""

    name: str
    values: tuple[str, ...]

    def codes(self, tokens: TokenSet) -> np.ndarray:
        """int64 [T], index into `values`; -1 where the token has no label or a value that is not among them."""
        labels = tokens.labels.get(self.name)
        if labels is None:
            return np.full(tokens.num_tokens, -1, np.int64)
        place = {value: index for index, value in enumerate(self.values)}
        known = np.array([*(place.get(value, -1) for value in labels.names), -1], np.int64)
        found: np.ndarray = known[labels.codes]  # code -1 takes the last
        return found


class Corpus(ABC):
    """A source of labelled data, made from a validated Config.

    A text corpus yields documents (`documents`); the others hand over a finished TokenSet (`token_set`).
    """

    Config: ClassVar[type[ConfigBase]]
    kind: Kind
    synthetic: bool = False
    description: ClassVar[str]

    def __init__(self, config: ConfigBase) -> None:
        self.config = config


class TextCorpus(Corpus):
    """`interleaved`: the documents come in fair shares of what there is, so that any prefix will do."""

    kind = "text"
    interleaved: bool = False

    @abstractmethod
    def documents(self) -> Iterator[Document]:
        """Yield documents, in the same order every time. Raises `InputError` for files that cannot be read."""

    def tokenizer(self) -> Tokenizer | None:
        """The corpus' own vocabulary, where it has one; the same every time. None: one is trained on its text."""
        return None

    def floor(self, length: int, seq: int | None = None, first: int = 0) -> Mapping[str, Any] | None:
        """The lowest loss of a next-token model over the corpus' own vocabulary: `nats`, `std_error` and how it was
        found, as plain values; None where it is not known.

        On documents cut to at most `length` tokens, for a model that reads them from their beginnings, or in windows of
        `seq` tokens, scored from position `first` on.
        """
        return None


class VectorCorpus(Corpus):
    @abstractmethod
    def token_set(self) -> TokenSet:
        """All of the data, in the same order every time."""


class Wrapper(Corpus):
    """A corpus made of another one. `kind` and `synthetic` are those of its default; those of `over(source)` hold."""

    @property
    @abstractmethod
    def source(self) -> str | Mapping[str, Any]:
        """What names the other corpus."""

    @abstractmethod
    def over(self, source: Corpus) -> Corpus:
        """The text corpus or vector corpus that comes of it. Raises `InputError` where none does."""
