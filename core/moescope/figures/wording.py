"""Words for tokens and numbers, as they stand in hovers, captions and cards. What plotly draws is escaped here."""

from __future__ import annotations

import html
import math

import numpy as np

from moescope.trace.schema import Trace

_VISIBLE = str.maketrans({"\n": "⏎", "\r": "␍", "\t": "⇥", "\0": "␀"})


def escape(text: str) -> str:
    """Text as plotly's hover shows it literally: plotly reads a small HTML."""
    return html.escape(text.translate(_VISIBLE), quote=False)


def shown_token(text: str) -> str:
    """A token's text with the white space at its ends made visible, not yet escaped."""
    inner = text.strip(" ")
    if not inner:
        return "␣" * len(text) or "∅"
    left, right = len(text) - len(text.lstrip(" ")), len(text) - len(text.rstrip(" "))
    return "␣" * left + inner + "␣" * right


def token_name(trace: Trace, index: int) -> str:
    """What to call one token: its text; of an image, its row and column of patches; of a vector, its number."""
    if trace.meta.kind == "text":
        return trace.token_text(index)
    position = int(trace.position[index])
    if trace.meta.kind == "patches":
        side = patch_side(trace, int(trace.doc[index]))
        return f"row {position // side + 1}, column {position % side + 1}" if side else f"patch {position + 1}"
    return f"vector {index}"


def patch_side(trace: Trace, doc: int) -> int:
    """Patches in a row of a document's image, where its patches fill a square; else 0."""
    first, last = np.searchsorted(trace.doc, [doc, doc + 1])
    side = math.isqrt(int(last - first))
    return side if side * side == last - first else 0


class Contexts:
    """The text around tokens, inside their documents. Made once per trace, asked once per token."""

    def __init__(self, trace: Trace) -> None:
        self._text = trace.text
        self._starts: list[int] = [] if trace.start is None else trace.start.tolist()
        self._ends: list[int] = [] if trace.end is None else trace.end.tolist()
        new = np.flatnonzero(np.diff(trace.doc, prepend=-1))
        self._first = np.repeat(new, np.diff(new, append=trace.num_tokens)).tolist()
        self._last = np.repeat(np.append(new[1:], trace.num_tokens) - 1, np.diff(new, append=trace.num_tokens)).tolist()

    def around(self, index: int, before: int = 40, after: int = 30) -> tuple[str, str]:
        """At most so many bytes before and after one token, cut between characters; empty for what is not text."""
        if not self._starts:
            return "", ""
        text, start, end = self._text, self._starts[index], self._ends[index]
        first, last = self._starts[self._first[index]], self._ends[self._last[index]]
        low, high = max(first, start - before), min(last, end + after)
        while first < low < start and text[low] & 0xC0 == 0x80:
            low += 1
        while end < high < last and text[high] & 0xC0 == 0x80:
            high -= 1
        return text[low:start].decode("utf-8", errors="replace"), text[end:high].decode("utf-8", errors="replace")


def number(value: int) -> str:
    """12000 as '12,000'."""
    return f"{value:,}"


def percent(share: float) -> str:
    """0.614 as '61 %', 0.0042 as '0.42 %'."""
    scaled = 100 * share
    return f"{scaled:.0f} %" if scaled >= 9.95 or scaled == 0 else f"{scaled:.2g} %"


def ratio(value: float) -> str:
    """A ratio to even: '1.53×'."""
    return f"{value:.3g}×"
