"""Which data each step sees: a pure function of (seed, step), so that a resumed run needs no loader state.

The data is passed through in epochs; an epoch is a seeded permutation of its items (windows of a token stream, or whole
documents), and step s takes items s*batch .. (s+1)*batch - 1 of the endless sequence of epochs.
"""

from __future__ import annotations

import functools
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from moescope.data.base import LabelSource, TokenSet
from moescope.data.corruption import LABEL
from moescope.data.tokens import select
from moescope.errors import InputError
from moescope.model import IGNORED, Batch, collate, sequences

Array = np.ndarray[Any, Any]

_SHUFFLE, _SHIFT, _STAGE = 1, 2, 5
"""Branches of the seed, beside 0 for the order of an epoch."""


@functools.lru_cache(maxsize=8)
def _epoch(seed: int, epoch: int, items: int) -> Array:
    order = np.random.default_rng([seed, 0, epoch]).permutation(items)
    order.setflags(write=False)
    return order


@functools.lru_cache(maxsize=8)
def _shift(seed: int, epoch: int, seq: int) -> int:
    return int(np.random.default_rng([seed, _SHIFT, epoch]).integers(seq))


def draw(step: int, *, batch: int, items: int, seed: int) -> tuple[Array, Array]:
    """Items of step `step` (0 is the first) and the epoch of each, both int64 [batch]."""
    position = np.arange(step * batch, (step + 1) * batch, dtype=np.int64)
    epoch = position // items
    item = np.empty(batch, np.int64)
    for number in range(int(epoch[0]), int(epoch[-1]) + 1):
        here = epoch == number
        item[here] = _epoch(seed, number, items)[position[here] % items]
    return item, epoch


class Windows:
    """Batches of `seq` tokens with the next ones as targets, from the stream of all documents, shuffled once.

    Windows of one epoch do not overlap but for the token that is one's last target and another's first input; each
    epoch shifts the grid by its own offset, so that a token is not always at the same position. The first token of a
    document is no target. Raises `InputError` where there is not one window.
    """

    def __init__(
        self,
        tokens: TokenSet,
        *,
        seq: int,
        batch: int,
        seed: int,
        what: str = "data.tokens",
        label: LabelSource | None = None,
    ) -> None:
        starts = np.flatnonzero(np.diff(tokens.doc, prepend=-1))
        ends = np.append(starts[1:], tokens.num_tokens)
        documents = np.random.default_rng([seed, _SHUFFLE]).permutation(len(starts))
        stream = [np.arange(starts[d], ends[d]) for d in documents] or [np.empty(0, np.int64)]
        order_T = np.concatenate(stream)
        self.inputs_T = tokens.inputs[order_T].astype(np.int64)
        self.doc_T = tokens.doc[order_T]
        self.label_T = None if label is None else label.codes(tokens)[order_T]
        self.items = (tokens.num_tokens - 1) // seq - 1
        if self.items < 1:
            raise InputError(
                f"{what} gives {tokens.num_tokens} tokens, too few for windows of optim.seq = {seq}: "
                f"at least {2 * seq + 1} are needed."
            )
        self.seq, self.batch, self.seed = seq, batch, seed

    def __call__(self, step: int) -> Batch:
        """The batch of one step: every position valid, [batch, seq]."""
        window, epoch = draw(step, batch=self.batch, items=self.items, seed=self.seed)
        first = window * self.seq + np.array([_shift(self.seed, int(number), self.seq) for number in epoch])
        index_BS = first[:, None] + np.arange(self.seq + 1)
        ids_BS, doc_BS = self.inputs_T[index_BS], self.doc_T[index_BS]
        target_BS = np.where(doc_BS[:, 1:] == doc_BS[:, :-1], ids_BS[:, 1:], IGNORED)
        return Batch(
            inputs=torch.from_numpy(np.ascontiguousarray(ids_BS[:, :-1])),
            valid=torch.ones(self.batch, self.seq, dtype=torch.bool),
            target=torch.from_numpy(target_BS),
            label=None if self.label_T is None else torch.from_numpy(self.label_T[index_BS[:, :-1]]),
        )


class Documents:
    """Batches of whole documents with their class or values, in a new order each epoch."""

    def __init__(
        self,
        tokens: TokenSet,
        *,
        max_seq: int,
        batch: int,
        seed: int,
        what: str = "data.tokens",
        label: LabelSource | None = None,
    ) -> None:
        self.tokens, self.batch, self.seed, self.label = tokens, batch, seed, label
        self.chunks = sequences(tokens, max_seq)
        self.items = len(self.chunks)
        if not self.items:
            raise InputError(f"{what} gives no document.")
        if tokens.target is None and tokens.values is None:
            raise InputError("This data has no class and no values per document, so there is nothing to predict.")
        longest = int(np.bincount(tokens.doc).max())
        if longest > max_seq:
            raise InputError(f"model.max_seq = {max_seq}: a document has {longest} positions.")

    def __call__(self, step: int) -> Batch:
        """The batch of one step, padded to its longest document."""
        item, _ = draw(step, batch=self.batch, items=self.items, seed=self.seed)
        return collate(self.tokens, [self.chunks[i] for i in item], label=self.label)


class Arriving:
    """Batches of what has arrived by each step; where something arrives, the epochs begin anew over all there is.

    stages: (first step, documents from then on), as `arrivals.stages` gives them. over: makes the batches of some
    tokens from a seed. The first stage is made at once, so that too little data is refused before the first step.
    """

    def __init__(
        self,
        tokens: TokenSet,
        stages: Sequence[tuple[int, Array]],
        seed: int,
        over: Callable[[TokenSet, int], Windows | Documents],
    ) -> None:
        self.tokens, self.stages, self.seed, self.over = tokens, stages, seed, over
        self.starts = [start for start, _ in stages]
        self._made = (0, self._source(0))

    @property
    def batch(self) -> int:
        return self._made[1].batch

    @property
    def items(self) -> int:
        """Items of the stage that was drawn from last."""
        return self._made[1].items

    def __call__(self, step: int) -> Batch:
        """The batch of one step."""
        stage = bisect_right(self.starts, step) - 1
        if stage != self._made[0]:
            self._made = (stage, self._source(stage))
        return self._made[1](step - self.starts[stage])

    def _source(self, stage: int) -> Windows | Documents:
        seed = self.seed if stage == 0 else int(np.random.SeedSequence([self.seed, _STAGE, stage]).generate_state(1)[0])
        return self.over(select(self.tokens, self.stages[stage][1]), seed)


Batches = Windows | Documents | Arriving


class SameDocuments:
    """Batches of the same held-out documents, whatever was done to their words: about `size` tokens, each whole.

    Windows of a stream would not do: a few more or fewer tokens move every one of them. Chunks of at most `seq` tokens
    never cross a document, so both versions of a document are read from its first token to its last.
    """

    def __init__(self, held_out: TokenSet, *, size: int, seq: int, batch: int, label: LabelSource | None) -> None:
        order = np.random.default_rng([0, _SHUFFLE]).permutation(held_out.num_docs)
        reached = np.cumsum(np.bincount(held_out.doc, minlength=held_out.num_docs)[order])
        self.documents = order[: int(np.searchsorted(reached, size)) + 1]
        self.seq, self.batch, self.label = seq, batch, label

    def __call__(self, version: TokenSet) -> list[Batch]:
        """The batches of one version of the held-out data, padded at the end of each document's last chunk."""
        tokens = select(version, self.documents)
        chunks = sequences(tokens, self.seq)
        groups = [chunks[first : first + self.batch] for first in range(0, len(chunks), self.batch)]
        return [collate(tokens, group, label=self.label) for group in groups]

    def kept(self, version: TokenSet) -> list[torch.Tensor]:
        """The targets of the same batches without words that were replaced. int64 [B, S] each."""
        untouched = LabelSource(LABEL, ("no",)).codes(version) == 0
        marked = replace(version, inputs=np.where(untouched, version.inputs, IGNORED).astype(np.int32))
        return [batch.target for batch in self(marked) if batch.target is not None]


@dataclass(frozen=True)
class Held:
    """A fixed number of batches of held-out data, the same at every evaluation: each item at most once."""

    source: Batches
    most: int

    def __call__(self) -> list[Batch]:
        whole = max(1, self.source.items // self.source.batch)
        return [self.source(index) for index in range(min(self.most, whole))]
