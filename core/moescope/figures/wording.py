"""Words for tokens and numbers, as they stand in hovers, captions and cards. What plotly draws is escaped here."""

from __future__ import annotations

import html
import math

import numpy as np

from moescope.trace.schema import Trace

_VISIBLE = str.maketrans({"\n": "⏎", "\r": "␍", "\t": "⇥", "\0": "␀"})


def escape(text: str) -> str:
    """Text that plotly shows literally: it reads HTML, and `%{` as a template (parted by a zero-width space)."""
    return html.escape(text.translate(_VISIBLE), quote=False).replace("%{", "%\u200b{")


def shown_token(text: str) -> str:
    """A token's text with the white space at its ends made visible, not yet escaped."""
    inner = text.strip(" ")
    if not inner:
        return "␣" * len(text) or "∅"
    left, right = len(text) - len(text.lstrip(" ")), len(text) - len(text.rstrip(" "))
    return "␣" * left + inner + "␣" * right


class Words:
    """What to call a trace's tokens, and the text around them inside their documents."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        documents = int(trace.doc[-1]) + 1 if trace.num_tokens else 0
        self._bounds = np.searchsorted(trace.doc, np.arange(documents + 1))
        largest = int(np.diff(self._bounds).max(initial=0))
        side = math.isqrt(largest)
        self._side = side if side * side == largest else 0

    def name(self, index: int) -> str:
        """Text: the token's. Patches: "row,column" from 0 where they fill a square image. Vectors: a number."""
        trace = self._trace
        if trace.start is not None:
            return trace.token_text(index)
        if trace.meta.kind == "patches":
            position = int(trace.position[index])
            return f"patch {position // self._side},{position % self._side}" if self._side else f"patch {position}"
        return f"vector {index}"

    def around(self, index: int, before: int = 40, after: int = 30) -> tuple[str, str]:
        """At most so many bytes before and after one token, cut between characters; empty for what is not text."""
        trace = self._trace
        if trace.start is None or trace.end is None:
            return "", ""
        text, start, end, doc = trace.text, int(trace.start[index]), int(trace.end[index]), int(trace.doc[index])
        first, last = int(trace.start[self._bounds[doc]]), int(trace.end[self._bounds[doc + 1] - 1])
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
