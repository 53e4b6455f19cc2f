"""The user's own text: a file or a folder of plain text, source code, JSON Lines or CoNLL-U, gzipped or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from moescope.config import Config, doc
from moescope.data.base import Document, TextCorpus
from moescope.data.conllu import conllu_documents
from moescope.data.jsonl import jsonl_documents
from moescope.data.reading import read_text, text_files
from moescope.data.syntax import syntax_spans
from moescope.data.windows import windows
from moescope.errors import InputError

_JSONL = (".jsonl", ".ndjson")
_CONLLU = (".conllu", ".conll")
_ALWAYS = frozenset({"domain", "label", "class", "topic", "category"})


@dataclass(frozen=True, kw_only=True)
class TextConfig(Config):
    """Which files, and how much of them."""

    path: str = field(metadata=doc("a file or a folder on this machine"))
    max_characters: int = field(default=8000, metadata=doc("longer documents are cut at line breaks"))
    max_values: int = field(default=100, metadata=doc("a field with more values than this is no label"))
    max_file_bytes: int = field(default=256 << 20, metadata=doc("larger files, unpacked, are refused"))
    max_total_characters: int = field(default=200_000_000, metadata=doc("more text than this is refused"))
    max_files: int = field(default=20_000, metadata=doc("a folder with more text files is refused"))

    def __post_init__(self) -> None:
        self.require(bool(self.path), "path", "must name a file or a folder")
        for name in ("max_values", "max_file_bytes", "max_total_characters", "max_files"):
            self.require(getattr(self, name) > 0, name, "must be positive")
        self.require(self.max_characters >= 100, "max_characters", "must be at least 100")


class TextFiles(TextCorpus):
    """Plain text is one document a file; JSON Lines one a line; CoNLL-U one a document, or a sentence.

    Labels: fields of JSON Lines with few values, `upos` and `xpos` of CoNLL-U, `syntax` of Python files, and for a
    folder `domain`: the name of the folder just below it that holds the file, or the file's own without suffix.
    """

    Config = TextConfig
    description = "A file or folder of yours: plain text, source code, JSON Lines with labels, CoNLL-U; also .gz"

    config: TextConfig

    def documents(self) -> Iterator[Document]:
        found = list(self._labelled())
        dropped = self._no_labels(found)
        for document in found:
            labels = {name: value for name, value in document.labels.items() if name not in dropped}
            yield from windows(replace(document, labels=labels), self.config.max_characters)

    def _labelled(self) -> Iterator[Document]:
        root = Path(self.config.path).expanduser()
        if not root.exists():
            raise InputError(f"{root}: there is no such file or folder.")
        folder = root.is_dir()
        files = text_files(root, self.config.max_files) if folder else [root]
        total = 0
        for path in files:
            name = path.relative_to(root).as_posix() if folder else path.name
            domain = {"domain": _stem(name.split("/")[0])} if folder and len(files) > 1 else {}
            for document in self._file(path, name):
                total += len(document.text)
                if total > self.config.max_total_characters:
                    raise InputError(f"{root}: more than {self.config.max_total_characters:,} characters of text.")
                yield replace(document, labels={**domain, **document.labels})
        if not total:
            raise InputError(f"{root}: there is no text in it.")

    def _file(self, path: Path, name: str) -> Iterator[Document]:
        text = read_text(path, self.config.max_file_bytes)
        plain = name.removesuffix(".gz").lower()
        if plain.endswith(_JSONL):
            yield from jsonl_documents(text, name)
        elif plain.endswith(_CONLLU):
            yield from conllu_documents(text, name)
        elif text:
            spans = syntax_spans(text) if plain.endswith((".py", ".pyi")) else None
            yield Document(name, text, {}, {} if spans is None else {"syntax": spans})

    def _no_labels(self, documents: list[Document]) -> set[str]:
        """Fields that say nothing: one value throughout, more than `max_values`, or hardly one repeated."""
        values: dict[str, Counter[str]] = {}
        for document in documents:
            for name, value in document.labels.items():
                values.setdefault(name, Counter())[value] += 1
        return {
            name
            for name, counts in values.items()
            if len(counts) == 1
            or len(counts) > self.config.max_values
            or (2 * len(counts) > counts.total() and name not in _ALWAYS)
        }


def _stem(name: str) -> str:
    return name.split(".")[0] or name
