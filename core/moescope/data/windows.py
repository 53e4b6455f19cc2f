"""Cutting long documents at line boundaries, and interleaving sources so that each has a fair share."""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import TypeVar

from moescope.data.base import Document, Span

T = TypeVar("T")
_START, _END = attrgetter("start"), attrgetter("end")


def windows(document: Document, max_characters: int) -> Iterator[Document]:
    """Cut a document into windows of at most `max_characters`; joined, their texts are the document's.

    A cut falls after the last blank line of the window's second half, else after its last line break, else (a line
    longer than the window) anywhere. Spans are cut with the text. Windows are named `ID#0`, `ID#1`, ...; a document
    that fits is yielded as it is.
    """
    if len(document.text) <= max_characters:
        yield document
        return
    ordered = {name: sorted(spans, key=_START) for name, spans in document.spans.items()}
    for index, (start, end) in enumerate(_cuts(document.text, max_characters)):
        yield replace(
            document,
            id=f"{document.id}#{index}",
            text=document.text[start:end],
            spans={name: inside(spans, start, end) for name, spans in ordered.items()},
        )


def _cuts(text: str, size: int) -> Iterator[tuple[int, int]]:
    start = 0
    while len(text) - start > size:
        limit = start + size
        blank = text.rfind("\n\n", start + size // 2, limit)
        line = text.rfind("\n", start, limit)
        end = blank + 2 if blank >= 0 else line + 1 if line >= 0 else limit
        if end == limit and text[end - 1 : end + 1] == "\r\n" and end - 1 > start:
            end -= 1
        yield start, end
        start = end
    if start < len(text):
        yield start, len(text)


def inside(spans: Sequence[Span], start: int, end: int) -> list[Span]:
    """The parts of `spans`, ascending and disjoint, that lie in [start, end), with offsets from `start`."""
    first = bisect_right(spans, start, key=_END)
    last = bisect_left(spans, end, lo=first, key=_START)
    return [Span(max(s.start, start) - start, min(s.end, end) - start, s.value) for s in spans[first:last]]


def source_of(name: str) -> str:
    """What a document was cut from: its name without the window's number."""
    head, mark, tail = name.rpartition("#")
    return head if mark and tail.isdigit() else name


def interleave(sources: Iterable[Iterator[T]], size: Callable[[T], int], cap: int | None = None) -> Iterator[T]:
    """Merge sources, always taking from the one that has given the least so far, by `size`.

    Among sources that still have items, what they have given differs by at most one item; a source that ends leaves
    its share to the others. A source that has given `cap` or more is left out from then on.
    """
    heap = [(0, order, source) for order, source in enumerate(sources)]
    heapq.heapify(heap)
    while heap:
        given, order, source = heap[0]
        try:
            item = next(source)
        except StopIteration:
            heapq.heappop(heap)
            continue
        given += size(item)
        if cap is not None and given >= cap:
            heapq.heappop(heap)
        else:
            heapq.heapreplace(heap, (given, order, source))
        yield item


def characters(document: Document) -> int:
    """A document's size for `interleave`."""
    return len(document.text)
