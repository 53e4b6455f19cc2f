"""The probe: fixed tokens whose routing is traced while the model trains."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from moescope.data.base import Labels, TokenSet
from moescope.data.tokens import select

_SHORTEST: Final = 128
_DOCUMENTS: Final = 32


def held_out_probe(tokens: TokenSet, most: int, seed: int) -> TokenSet:
    """About `most` tokens of documents drawn by `seed`: of text the beginnings, so that many documents have a part."""
    cap = max(_SHORTEST, most // _DOCUMENTS) if tokens.kind == "text" else most
    order = np.random.default_rng([seed, 4]).permutation(tokens.num_docs)
    reached = np.cumsum(np.minimum(np.bincount(tokens.doc, minlength=tokens.num_docs), cap)[order])
    chosen = select(tokens, order[: max(1, int(np.searchsorted(reached, most, side="right")))])
    return beginnings(chosen, cap) if tokens.kind == "text" else chosen


def beginnings(tokens: TokenSet, most: int) -> TokenSet:
    """The first `most` tokens of every document of a text, and no text behind them."""
    assert tokens.start is not None and tokens.end is not None
    first_D = np.searchsorted(tokens.doc, np.arange(tokens.num_docs))
    position_T = np.arange(tokens.num_tokens) - first_D[tokens.doc]
    keep_T = position_T < most
    raw = np.frombuffer(tokens.text, np.uint8)
    begin_D = tokens.start[first_D].astype(np.int64)
    end_D = np.zeros(tokens.num_docs, np.int64)
    np.maximum.at(end_D, tokens.doc[keep_T], tokens.end[keep_T])
    for index, end in enumerate(end_D.tolist()):
        while end < len(raw) and raw[end] & 0xC0 == 0x80:  # the last token may have split a character
            end += 1
        end_D[index] = end
    shift_D = np.cumsum(end_D - begin_D) - (end_D - begin_D) - begin_D
    shift_T = shift_D[tokens.doc[keep_T]]
    return replace(
        tokens,
        inputs=tokens.inputs[keep_T],
        doc=tokens.doc[keep_T],
        labels={name: Labels(item.codes[keep_T], item.names, item.scope) for name, item in tokens.labels.items()},
        text=b"".join(tokens.text[a:b] for a, b in zip(begin_D.tolist(), end_D.tolist(), strict=True)),
        start=(tokens.start[keep_T] + shift_T).astype(np.int32),
        end=(tokens.end[keep_T] + shift_T).astype(np.int32),
    )
