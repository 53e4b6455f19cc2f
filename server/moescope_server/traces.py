"""Open traces, kept open; and the views of one that are not figures: text window, documents, search, images."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from moescope.errors import InputError
from moescope.store import NotFoundError, TraceRow
from moescope.trace.schema import LayerTrace, Trace

from moescope_server.memo import Memo

MAX_WINDOW = 5000

Stamp = tuple[str, int, int]


def file_stamp(path: str) -> Stamp:
    """A key for the file as it is now. Raises `NotFoundError` if it has gone."""
    try:
        info = Path(path).stat()
    except OSError:
        raise NotFoundError(f"The trace's file {Path(path).name} is no longer there.") from None
    return path, info.st_mtime_ns, info.st_size


@dataclass(frozen=True)
class OpenTrace:
    """A trace with what its views need again and again.

    first_D: int64, index of each document's first token. sampled_T: bool, the token has hidden vectors.
    """

    trace: Trace
    stamp: Stamp
    first_D: np.ndarray
    sampled_T: np.ndarray

    def layer(self, layer: int | None) -> LayerTrace:
        """One layer, the first if None. Raises `NotFoundError` for one that is not there."""
        ids = self.trace.layer_ids
        chosen = ids[0] if layer is None else layer
        if chosen not in ids:
            raise NotFoundError(f"This trace has no layer {layer}; it has {', '.join(map(str, ids))}.")
        return self.trace.layers[chosen]

    def document_name(self, index: int) -> str:
        names = self.trace.meta.data.get("documents", ())
        return str(names[index]) if index < len(names) else f"document {index}"


class TraceCache:
    """The traces looked at last, each read once."""

    def __init__(self, keep: int = 8) -> None:
        self._open: Memo[OpenTrace] = Memo(keep)

    def open(self, row: TraceRow) -> OpenTrace:
        stamp = file_stamp(row.path)
        return self._open.get(stamp, lambda: _open(row.path, stamp))


def _open(path: str, stamp: Stamp) -> OpenTrace:
    from moescope.trace.io import read_trace

    trace = read_trace(path)
    count = int(trace.doc[-1]) + 1 if trace.num_tokens else 0
    sampled = np.zeros(trace.num_tokens, dtype=bool)
    if trace.sample is not None:
        sampled[trace.sample] = True
    return OpenTrace(trace, stamp, np.searchsorted(trace.doc, np.arange(count)), sampled)


def token_window(opened: OpenTrace, layer: int | None, start: int, count: int) -> dict[str, Any]:
    """Tokens [start, start + count) with their routing in one layer; `count` is at most MAX_WINDOW."""
    trace, chosen = opened.trace, opened.layer(layer)
    total = trace.num_tokens
    start = min(max(start, 0), total)
    part = slice(start, min(start + min(count, MAX_WINDOW), total))
    experts_TK = chosen.expert_TK[part]
    documents = np.unique(trace.doc[part])
    return {
        "layer": chosen.meta.layer,
        "start": start,
        "total": total,
        "text": [trace.token_text(index) for index in range(part.start, part.stop)],
        "doc": trace.doc[part],
        "experts": experts_TK,
        "gates": np.round(chosen.gate_TK[part].astype(np.float64), 6),
        "dropped": (experts_TK >= 0) & ~chosen.sent_TK[part],
        "labels": {name: labels.codes[part] for name, labels in trace.labels.items()},
        "documents": [
            {"index": int(index), "start": int(opened.first_D[index]), "name": opened.document_name(int(index))}
            for index in documents
        ],
        "in_map": opened.sampled_T[part],
    }


def documents(opened: OpenTrace) -> list[dict[str, Any]]:
    """Every document with its length and the labels that hold for all of it."""
    trace = opened.trace
    counts = np.bincount(trace.doc, minlength=len(opened.first_D))
    return [
        {
            "index": index,
            "name": opened.document_name(index),
            "start": int(start),
            "tokens": int(counts[index]),
            "labels": _document_labels(trace, int(start)),
        }
        for index, start in enumerate(opened.first_D)
        if counts[index]
    ]


def _document_labels(trace: Trace, start: int) -> Mapping[str, str]:
    found = {}
    for name, labels in trace.labels.items():
        code = int(labels.codes[start])
        if labels.scope == "document" and code >= 0:
            found[name] = labels.names[code]
    return found


def search(opened: OpenTrace, query: str, limit: int) -> dict[str, Any]:
    """The first token of every place where the text has `query`, whatever its case; matches stay inside a document.

    Without text, the first token of every document whose name or label has it.
    """
    if not query:
        return {"matches": [], "total": 0}
    trace = opened.trace
    if trace.start is not None and trace.end is not None:
        found = _search_text(trace, query)
    else:
        wanted = query.casefold()
        found = [
            item["start"]
            for item in documents(opened)
            if any(wanted in text.casefold() for text in (item["name"], *item["labels"].values()))
        ]
    return {"matches": found[:limit], "total": len(found)}


def _search_text(trace: Trace, query: str) -> list[int]:
    text = trace.text.decode("utf-8", errors="surrogateescape")
    spans = np.array([match.span() for match in re.finditer(re.escape(query), text, re.IGNORECASE)], np.int64)
    if not len(spans) or trace.start is None or trace.end is None:
        return []
    if len(text) != len(trace.text):
        widths = np.fromiter((_utf8_width(character) for character in text), np.int64, len(text))
        spans = np.concatenate([[0], np.cumsum(widths)])[spans]
    first = np.searchsorted(trace.end, spans[:, 0], side="right")
    last = np.searchsorted(trace.start, spans[:, 1], side="left") - 1
    inside = (first < trace.num_tokens) & (last >= first)
    first, last = first[inside], last[inside]
    same = trace.doc[first] == trace.doc[last]
    matches: list[int] = first[same].tolist()
    return matches


def _utf8_width(character: str) -> int:
    code = ord(character)
    if code < 0x80 or 0xDC80 <= code <= 0xDCFF:  # the latter: a byte that is not UTF-8, kept by surrogateescape
        return 1
    return 2 if code < 0x800 else 3 if code < 0x10000 else 4


def image_png(opened: OpenTrace, doc: int) -> bytes:
    """A document's image as a grey PNG."""
    images = opened.trace.images
    if images is None:
        raise InputError("This trace has no images.")
    if not 0 <= doc < len(images):
        raise NotFoundError(f"This trace has no document {doc}; it has {len(images)}.")
    height, width = images[doc].shape
    rows = np.zeros((height, width + 1), np.uint8)  # each row starts with its filter: 0, none
    rows[:, 1:] = images[doc]
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
