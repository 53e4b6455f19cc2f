"""CoNLL-U: treebanks with gold parts of speech (https://universaldependencies.org/format.html)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from moescope.data.base import Document, Span
from moescope.data.reading import numbered_lines
from moescope.errors import InputError

_WORD = re.compile(r"[1-9][0-9]*")
_RANGE = re.compile(r"([1-9][0-9]*)-([1-9][0-9]*)")
_EMPTY_NODE = re.compile(r"[0-9]+\.[0-9]+")
_COMMENT = re.compile(r"#\s*(newdoc id|newdoc|newpar|sent_id)\s*(?:=\s*(.*\S))?\s*$|#\s*(newpar) id\b")


@dataclass
class _Building:
    """A document as it grows: text so far, spans, and what separates what comes next."""

    id: str
    text: list[str] = field(default_factory=list)
    length: int = 0
    gap: str = ""
    upos: list[Span] = field(default_factory=list)
    xpos: list[Span] = field(default_factory=list)

    def add(self, form: str, tags: tuple[str, str], space_after: bool) -> None:
        start = self.length + len(self.gap)
        self.text += [self.gap, form]
        self.length = start + len(form)
        self.gap = " " if space_after else ""
        for spans, tag in zip((self.upos, self.xpos), tags, strict=True):
            if tag != "_":
                spans.append(Span(start, self.length, tag))

    def done(self) -> Document:
        return Document(self.id, "".join(self.text) + "\n", {}, {"upos": self.upos, "xpos": self.xpos})


def conllu_documents(text: str, name: str) -> Iterator[Document]:
    """Documents by `# newdoc`, or one per sentence where a file has none, with token labels `upos` and `xpos`.

    The text is put together from the forms: a blank after each unless `SpaceAfter=No`, a line break between sentences,
    a blank line before a `# newpar`. A multiword token (`3-4`) stands in the text as its own form; its words are
    labelled where their forms put together are that form ("don't": "do" and "n't"), else it is unlabelled, as it has no
    one tag ("du": "de" and "le"). Empty nodes (`8.1`) are not in the text. A tag `_` is no label. Raises `InputError`
    naming the line.
    """
    by_document = re.search(r"^#\s*newdoc\b", text, re.MULTILINE) is not None
    building: _Building | None = None
    sentence: list[tuple[int, list[str]]] = []
    title: str | None = None
    for number, line in [*numbered_lines(text), (0, "")]:
        if line.startswith("#"):
            key, value = _comment(line)
            if key == "newdoc" and building:
                yield building.done()
                building = None
            if key in ("newdoc", "sent_id"):
                title = title if key == "sent_id" and (by_document or not value) else value
            elif key == "newpar" and building:
                building.gap = "\n\n"
        elif line.strip():
            sentence.append((number, _columns(line, f"{name}, line {number}")))
        elif sentence:
            building = building or _Building(f"{name}:{title}" if title else f"{name}:{sentence[0][0]}")
            _add_sentence(building, sentence, name)
            sentence, building.gap = [], "\n"
            if not by_document:
                yield building.done()
                building = None
                title = None
    if building:
        yield building.done()


def _comment(line: str) -> tuple[str, str | None]:
    match = _COMMENT.match(line)
    if not match:
        return "", None
    key = match[1] or match[3]
    return key.removesuffix(" id"), match[2]


def _columns(line: str, where: str) -> list[str]:
    columns = line.split("\t")
    if len(columns) != 10:
        raise InputError(f"{where}: {len(columns)} columns by tabs instead of the 10 of CoNLL-U.")
    if not any(kind.fullmatch(columns[0]) for kind in (_WORD, _RANGE, _EMPTY_NODE)):
        raise InputError(f"{where}: the id {columns[0][:20]!r} is not a number, a range or an empty node.")
    if not columns[1]:
        raise InputError(f"{where}: the form is empty.")
    return columns


def _add_sentence(building: _Building, sentence: list[tuple[int, list[str]]], name: str) -> None:
    rows = [(number, columns) for number, columns in sentence if not _EMPTY_NODE.fullmatch(columns[0])]
    expected = 1
    index = 0
    while index < len(rows):
        number, columns = rows[index]
        span = _RANGE.fullmatch(columns[0])
        first, last = (int(span[1]), int(span[2])) if span else (int(columns[0]), int(columns[0]))
        if first != expected or last < first:
            raise InputError(f"{name}, line {number}: the id {columns[0]} stands where {expected} should.")
        words = [row for _, row in rows[index + 1 : index + 1 + last - first + 1]] if span else [columns]
        if [row[0] for row in words] != [str(i) for i in range(first, last + 1)]:
            raise InputError(
                f"{name}, line {number}: the words {first} to {last} of the token {columns[0]} do not follow it."
            )
        _add_token(building, columns, words)
        expected = last + 1
        index += len(words) + (1 if span else 0)


def _add_token(building: _Building, columns: list[str], words: list[list[str]]) -> None:
    space = "SpaceAfter=No" not in columns[9].split("|")
    if "".join(row[1] for row in words) == columns[1]:
        for row in words:
            building.add(row[1], (row[3], row[4]), space and row is words[-1])
    else:
        building.add(columns[1], ("_", "_"), space)
