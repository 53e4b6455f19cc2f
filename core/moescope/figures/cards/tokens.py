"""The text itself: windows of tokens with their routing, the list of documents, and search."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from moescope.errors import InputError
from moescope.figures.counts import document_names, document_spans, get_layer
from moescope.figures.wording import Words
from moescope.trace.schema import Trace

MAX_WINDOW = 5000


def token_window(trace: Trace, layer: int, start: int = 0, count: int = 500) -> dict[str, Any]:
    """Tokens [start, start + count) with the experts that each wanted in `layer`, best first, and their gates.

    `dropped` marks wanted assignments that were not sent. Raises `InputError` outside the trace or for a window larger
    than `MAX_WINDOW`.
    """
    traced = get_layer(trace, layer)
    if not 1 <= count <= MAX_WINDOW:
        raise InputError(f"count = {count}: a window holds 1 to {MAX_WINDOW:,} tokens.")
    if not 0 <= start < max(trace.num_tokens, 1):
        raise InputError(f"start = {start}: the trace has tokens 0 to {trace.num_tokens - 1}.")
    window = slice(start, min(start + count, trace.num_tokens))
    wanted, expert = traced.wanted_TK[window], traced.expert_TK[window]
    gate, dropped = traced.gate_TK[window].astype(np.float64).round(5), wanted & ~traced.sent_TK[window]
    doc = trace.doc[window]
    sampled = np.zeros(trace.num_tokens, dtype=bool)
    if trace.sample is not None:
        sampled[trace.sample] = True
    names, seen, words = document_names(trace), set(doc.tolist()), Words(trace)
    return {
        "start": start,
        "total": trace.num_tokens,
        "text": [words.name(i) for i in range(start, window.stop)],
        "doc": doc.tolist(),
        "experts": _ragged(expert, wanted),
        "gates": _ragged(gate, wanted),
        "dropped": _ragged(dropped, wanted),
        "labels": {name: labels.codes[window].tolist() for name, labels in trace.labels.items()},
        "documents": [
            {"index": index, "start": first, "name": names[index]}
            for index, first, _ in document_spans(trace)
            if index in seen
        ],
        "in_map": sampled[window].tolist(),
    }


def _ragged(values_TK: np.ndarray, kept_TK: np.ndarray) -> list[list[Any]]:
    """Rows as lists, without the empty slots."""
    rows: list[list[Any]] = values_TK.tolist()
    if kept_TK.all():
        return rows
    pairs = zip(rows, kept_TK.tolist(), strict=True)
    return [[value for value, keep in zip(row, kept, strict=True) if keep] for row, kept in pairs]


def documents(trace: Trace) -> list[dict[str, Any]]:
    """Every document that has tokens: name, first token, number of tokens, and the labels that hold for all of it."""
    names = document_names(trace)
    scoped = {name: labels for name, labels in trace.labels.items() if labels.scope == "document"}
    return [
        {
            "index": index,
            "name": names[index],
            "start": first,
            "tokens": tokens,
            "labels": {
                name: labels.names[labels.codes[first]] for name, labels in scoped.items() if labels.codes[first] >= 0
            },
        }
        for index, first, tokens in document_spans(trace)
    ]


def search(trace: Trace, q: str, limit: int = 200) -> dict[str, Any]:
    """Tokens in which a match of the plain text `q` begins, ignoring case: `total` of them, and the first `limit`.

    A match lies within one document. What is not text is searched by the names of its documents.
    """
    if not q or limit < 0:
        return {"matches": [], "total": 0}
    if trace.start is None or trace.end is None:
        names, sought = document_names(trace), q.casefold()
        named = [first for index, first, _ in document_spans(trace) if sought in names[index].casefold()]
        return {"matches": named[:limit], "total": len(named)}
    begin, last = _match_bytes(trace.text, q)
    first_token = np.searchsorted(trace.start, begin, side="right") - 1
    last_token = np.searchsorted(trace.start, last, side="right") - 1
    inside = (first_token >= 0) & (begin < trace.end[first_token]) & (trace.doc[first_token] == trace.doc[last_token])
    found = np.unique(first_token[inside])
    return {"matches": found[:limit].tolist(), "total": int(found.size)}


def _match_bytes(text: bytes, q: str) -> tuple[np.ndarray, np.ndarray]:
    """int64 [m] twice: the first and the last byte of every match."""
    decoded = text.decode("utf-8", errors="surrogateescape")
    spans = [match.span() for match in re.finditer(re.escape(q), decoded, re.IGNORECASE)]
    size = np.frombuffer(decoded.encode("utf-32-le", errors="surrogatepass"), np.uint32)
    width = 1 + (size >= 0x80).astype(np.int64) + (size >= 0x800) + (size >= 0x10000)
    width[(size >= 0xDC80) & (size <= 0xDCFF)] = 1
    offset = np.r_[0, np.cumsum(width)]
    begin, end = np.array(spans, np.int64).reshape(-1, 2).T
    return offset[begin], offset[end] - 1
