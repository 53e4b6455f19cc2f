"""A public data set by name, through the `datasets` library (an optional extra)."""

from __future__ import annotations

import importlib.util
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from moescope.config import Config, doc
from moescope.data.base import Document, TextCorpus
from moescope.data.windows import windows
from moescope.errors import InputError

_TEXT_COLUMNS = ("text", "content", "sentence", "document", "article", "body")
_LOOK_AT = 1000
_LONGEST_VALUE = 100


@dataclass(frozen=True, kw_only=True)
class HubConfig(Config):
    """Which data set, which of its columns, and how much of it."""

    name: str = field(metadata=doc("name on the hub, or a local folder that `datasets` reads"))
    subset: str | None = field(default=None, metadata=doc("configuration of the data set, where it has several"))
    split: str = field(default="train", metadata=doc("train, test, validation, ..."))
    text: str = field(default="", metadata=doc("column of the text; empty: by its name, else the longest"))
    labels: tuple[str, ...] = field(default=(), metadata=doc("columns that label; empty: those with few values"))
    max_values: int = field(default=100, metadata=doc("a column with more values is no label"))
    max_documents: int = field(default=20_000, metadata=doc("no more rows than this are read"))
    max_characters: int = field(default=8000, metadata=doc("longer texts are cut into windows of at most this"))
    max_total_characters: int = field(default=20_000_000, metadata=doc("nor more text than this"))

    def __post_init__(self) -> None:
        self.require(bool(self.name), "name", "must name a data set")
        for name in ("max_values", "max_documents", "max_total_characters"):
            self.require(getattr(self, name) > 0, name, "must be positive")
        self.require(self.max_characters >= 100, "max_characters", "must be at least 100")


class HubCorpus(TextCorpus):
    """The first rows of a data set, streamed, so that the rest is never fetched.

    Labels: its ClassLabel columns, and string columns with few values.
    """

    Config = HubConfig
    description = "A public data set by name, through the `datasets` library (needs the extra moescope[hub])"

    config: HubConfig

    def documents(self) -> Iterator[Document]:
        rows, features = self._open()
        rows = itertools.islice(rows, self.config.max_documents)
        head = list(itertools.islice(rows, _LOOK_AT))
        if not head:
            raise InputError(f"hub:{self.config.name}: the split {self.config.split!r} has no rows.")
        text = self._text_column(head)
        names = self._label_columns(head, features, text)
        total = 0
        for index, row in enumerate(itertools.chain(head, rows)):
            if total >= self.config.max_total_characters:
                return
            if not isinstance(row.get(text), str):
                continue
            labels = {name: value for name, read in names.items() if (value := read(row.get(name))) is not None}
            document = Document(f"{self.config.name}:{index}", row[text].encode(errors="replace").decode(), labels)
            total += len(document.text)
            yield from windows(document, self.config.max_characters)

    def _open(self) -> tuple[Iterator[Mapping[str, Any]], Mapping[str, Any]]:
        if importlib.util.find_spec("datasets") is None:
            raise InputError("Data sets by name need the `datasets` library: pip install 'moescope[hub]'.")
        import datasets

        config = self.config
        try:
            with _quietly():
                found = datasets.load_dataset(config.name, config.subset, split=config.split, streaming=True)
            return _told(config.name, iter(found)), found.features or {}
        except Exception as error:  # whatever the library or the network raises is told in one sentence
            raise _refusal(config.name, error) from None

    def _text_column(self, head: list[Mapping[str, Any]]) -> str:
        columns = list(head[0])
        if self.config.text:
            if self.config.text not in columns:
                raise InputError(
                    f"hub:{self.config.name}: no column {self.config.text!r}; there are {', '.join(columns)}."
                )
            return self.config.text
        size = {name: sum(len(row[name]) for row in head if isinstance(row.get(name), str)) for name in columns}
        usual = [name for name in _TEXT_COLUMNS if size.get(name)]
        best = usual[0] if usual else max(columns, key=size.__getitem__)
        if not size[best]:
            raise InputError(f"hub:{self.config.name}: no column holds text; there are {', '.join(columns)}.")
        return best

    def _no_column(self, name: str, columns: list[str]) -> InputError:
        return InputError(f"hub:{self.config.name}: no column {name!r}; there are {', '.join(columns)}.")

    def _label_columns(
        self, head: list[Mapping[str, Any]], features: Mapping[str, Any], text: str
    ) -> dict[str, Callable[[Any], str | None]]:
        if missing := set(self.config.labels) - set(head[0]):
            raise self._no_column(min(missing), list(head[0]))
        found: dict[str, Callable[[Any], str | None]] = {}
        for name in self.config.labels or head[0]:
            read = _reader(features.get(name))
            values = [value for row in head if (value := read(row.get(name))) is not None]
            repeated = 2 * len(set(values)) <= len(values) and len(set(values)) <= self.config.max_values
            if name != text and (name in self.config.labels or (values and repeated)):
                found[name] = read
        return found


def _reader(feature: Any) -> Callable[[Any], str | None]:
    """How a value of a column becomes a label: the name of a class, a short string, true or false."""
    class_name = getattr(feature, "int2str", None)

    def read(value: Any) -> str | None:
        if class_name is not None:
            return str(class_name(value)) if isinstance(value, int) and value >= 0 else None
        if isinstance(value, bool):
            return str(value).lower()
        short = isinstance(value, str) and 0 < len(value) <= _LONGEST_VALUE
        return value.encode(errors="replace").decode() if short else None

    return read


def _told(name: str, rows: Iterator[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The rows; what goes wrong while fetching them is told in one sentence."""
    while True:
        try:
            with _quietly():
                row = next(rows)
        except StopIteration:
            return
        except Exception as error:
            raise _refusal(name, error) from None
        yield row


@contextmanager
def _quietly() -> Iterator[None]:
    """The libraries log each attempt of a request that fails; what came of it is told once, in an error of ours."""
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "datasets")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _refusal(name: str, error: Exception) -> InputError:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0][:300].rstrip(".")
    return InputError(f"hub:{name}: it cannot be opened ({first}).")
