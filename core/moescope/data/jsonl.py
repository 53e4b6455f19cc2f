"""JSON Lines: one object a line, with `text` and whatever labels it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from moescope.data.base import Document, Span
from moescope.data.reading import numbered_lines
from moescope.errors import InputError

_LONGEST_VALUE = 100
_NAME = re.compile(r"[\w .:-]{1,64}")


def jsonl_documents(text: str, name: str) -> Iterator[Document]:
    """A document per line. `text` is its text, `id` its name, other short scalars are labels of the document.

    `spans` may label parts: `{"label": [[start, end, "value"], ...]}`, in characters of `text`. Raises `InputError`
    naming the line for what is not JSON, not an object, without `text`, or with wrong spans.
    """
    for number, line in numbered_lines(text):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            why = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            raise InputError(f"{where}: it is not JSON ({why}).") from None
        yield _document(row, where, f"{name}:{number}")


def _document(row: Any, where: str, default_id: str) -> Document:
    if not isinstance(row, dict):
        raise InputError(f"{where}: it is not a JSON object with a `text`.")
    text = row.get("text")
    if not isinstance(text, str):
        raise InputError(f"{where}: the object has no `text` that is a string.")
    _require_unicode(text, where)
    labels = {}
    for key, value in row.items():
        if key in ("text", "id", "spans") or not isinstance(value, (str, int)) or not _NAME.fullmatch(key):
            continue
        label = str(value).lower() if isinstance(value, bool) else str(value)
        if 0 < len(label) <= _LONGEST_VALUE:
            _require_unicode(label, where)
            labels[key] = label
    spans = _spans(row.get("spans", {}), len(text), where)
    if both := set(labels) & set(spans):
        raise InputError(f"{where}: {min(both)!r} labels the whole document and parts of it.")
    identity = row.get("id")
    return Document(identity if isinstance(identity, str) and identity else default_id, text, labels, spans)


def _spans(given: Any, length: int, where: str) -> dict[str, list[Span]]:
    if not isinstance(given, dict):
        raise InputError(f"{where}: `spans` is not an object of lists of [start, end, value].")
    found: dict[str, list[Span]] = {}
    for name, items in given.items():
        if not isinstance(items, list) or not _NAME.fullmatch(name):
            raise InputError(f"{where}: the spans of {name[:64]!a} are not a list, or that is no name for a label.")
        spans = [_span(item, length, where) for item in items]
        found[name] = sorted(spans, key=lambda span: span.start)
        if any(later.start < earlier.end for earlier, later in zip(found[name], found[name][1:], strict=False)):
            raise InputError(f"{where}: the spans of {name!r} overlap.")
    return found


def _span(item: Any, length: int, where: str) -> Span:
    match item:
        case [int(start), int(end), str(value)] if 0 <= start < end <= length and value:
            _require_unicode(value, where)
            return Span(start, end, value)
    raise InputError(
        f"{where}: the span {json.dumps(item)[:80]} is not [start, end, value] within {length} characters."
    )


def _require_unicode(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: half of a surrogate pair ({text[error.start]!a}) is not valid Unicode.") from None
