"""What a token's point says when the pointer rests on it."""

from __future__ import annotations

import numpy as np

from moescope.figures.counts import confidence, document_names
from moescope.figures.wording import Words, escape, number, shown_token
from moescope.trace.schema import LayerTrace, Trace


def token_hovers(trace: Trace, traced: LayerTrace, token: np.ndarray) -> list[str]:
    """One line of context, the experts with their gates, the confidence, the labels and the place; all text escaped."""
    value, name = confidence(traced)
    parts = zip(
        token.tolist(), _words(trace, token), _routes(traced, token), value[token].tolist(), _labels(trace, token),
        _places(trace, token), strict=True,
    )  # fmt: skip
    layer = traced.meta.layer
    return [
        f"{words}<br>L{layer}: {route}<br>{name} {sure:.2f}<br>{said}{place}, token {number(index)}"
        for index, words, route, sure, said, place in parts
    ]


def _words(trace: Trace, token: np.ndarray) -> list[str]:
    words = Words(trace)
    made = []
    for index in token.tolist():
        before, after = words.around(index, 28, 18)
        made.append(f"{escape(before)}<b>{escape(shown_token(words.name(index)))}</b>{escape(after)}")
    return made


def _routes(traced: LayerTrace, token: np.ndarray) -> list[str]:
    rows = zip(
        traced.expert_TK[token].tolist(), traced.gate_TK[token].tolist(), traced.sent_TK[token].tolist(), strict=True
    )
    return [
        ", ".join(
            f"E{expert} {gate:.2f}" if went else f"E{expert} dropped"
            for expert, gate, went in zip(experts, gates, sent, strict=True)
            if expert >= 0
        )
        or "no expert"
        for experts, gates, sent in rows
    ]


def _labels(trace: Trace, token: np.ndarray) -> list[str]:
    said = [""] * len(token)
    for label, labels in trace.labels.items():
        known = [f"{escape(label)}: {escape(value)}<br>" for value in labels.names]
        said = [
            old + (known[code] if code >= 0 else "")
            for old, code in zip(said, labels.codes[token].tolist(), strict=True)
        ]
    return said


def _places(trace: Trace, token: np.ndarray) -> list[str]:
    names = [escape(name) for name in document_names(trace)]
    return [names[doc] for doc in trace.doc[token].tolist()]
