"""From a TokenSet to batches: chunks of documents that never cross a document, padded at the end."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

from moescope.data.base import LabelSource, TokenSet
from moescope.model.batch import IGNORED, Batch


def sequences(tokens: TokenSet, max_seq: int) -> list[tuple[int, int]]:
    """(start, length) of consecutive chunks of at most `max_seq` tokens that cover every token once, in order."""
    edges = [*np.flatnonzero(np.diff(tokens.doc, prepend=-1)).tolist(), tokens.num_tokens]
    chunks: list[tuple[int, int]] = []
    for start, end in pairwise(edges):
        chunks.extend((at, min(max_seq, end - at)) for at in range(start, end, max_seq))
    return chunks


def collate(
    tokens: TokenSet,
    chunks: Sequence[tuple[int, int]],
    device: str | torch.device = "cpu",
    label: LabelSource | None = None,
) -> Batch:
    """One row per chunk, padded at the end with zeros. `label` is what the model's router reads (`ModelConfig.label`).

    The target is the values or the class of the chunk's document where the TokenSet has them; else, for text, the next
    token of the same document (-100 where there is none); else None.
    """
    start_B, length_B = np.array(chunks, np.int64).T
    offset_S = np.arange(length_B.max())
    valid = offset_S < length_B[:, None]
    rows = np.where(valid, start_B[:, None] + offset_S, 0)
    taken = tokens.inputs[rows]
    if tokens.kind == "text":
        inputs = torch.from_numpy(np.where(valid, taken, 0).astype(np.int64))
    else:
        inputs = torch.from_numpy(np.where(valid[..., None], taken, 0).astype(np.float32))
    target = None
    if tokens.values is not None:
        target = torch.from_numpy(tokens.values[tokens.doc[rows[:, 0]]].astype(np.float32))
    elif tokens.target is not None:
        target = torch.from_numpy(tokens.target[tokens.doc[rows[:, 0]]].astype(np.int64))
    elif tokens.kind == "text":
        following = np.minimum(rows + 1, tokens.num_tokens - 1)
        same = valid & (following > rows) & (tokens.doc[following] == tokens.doc[rows])
        target = torch.from_numpy(np.where(same, tokens.inputs[following], IGNORED).astype(np.int64))
    codes = None
    if label is not None:
        codes = torch.from_numpy(np.where(valid, label.codes(tokens)[rows], -1))
    return Batch(inputs=inputs, valid=torch.from_numpy(valid), target=target, label=codes).to(device)
