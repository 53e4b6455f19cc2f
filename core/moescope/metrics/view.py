"""A trace as the measures see it: alive experts only, units of resampling, and every random draw from one seed.

Shapes: T tokens, A assignments, E alive experts, U units of resampling (documents or blocks), B bootstrap replicates.
"""

from __future__ import annotations

from functools import cached_property
from typing import Final
from zlib import crc32

import numpy as np

from moescope.metrics.nulls import random_counts
from moescope.trace.schema import LayerTrace, Trace

BLOCK_TOKENS: Final = 64
FEW_UNITS: Final = 10


def alive_experts(layer: LayerTrace) -> np.ndarray:
    """int64 [E], ids of the experts that exist, ascending. Dead slots are no part of E.

    Without their ids, the number of them tells: dead slots have logits of -inf, no probability and no tokens.
    """
    if layer.meta.alive is not None:
        return np.array(layer.meta.alive, np.int64)
    slots = max(layer.mean_probs_E.shape[0], int(layer.expert_TK.max(initial=-1)) + 1)
    alive = layer.meta.num_experts
    if alive >= slots:
        return np.arange(slots)
    used_E = np.zeros(slots, bool)
    used_E[layer.expert_TK[layer.expert_TK >= 0]] = True
    used_E[: layer.mean_probs_E.shape[0]] |= layer.mean_probs_E > 0
    if layer.logits_TE is not None and layer.logits_TE.size:
        used_E[: layer.logits_TE.shape[1]] |= np.isfinite(layer.logits_TE).any(axis=0)
    idle = np.flatnonzero(~used_E)
    used_E[idle[: max(0, alive - int(used_E.sum()))]] = True
    return np.flatnonzero(used_E)


class TraceView:
    """What all layers share within one call of `measure`."""

    def __init__(self, trace: Trace, *, seed: int, permutations: int, bootstrap: int) -> None:
        self.trace, self.seed, self.permutations, self.bootstrap = trace, seed, permutations, bootstrap
        self._random_counts: dict[tuple[bytes, int], np.ndarray] = {}

    def rng(self, *key: str | int) -> np.random.Generator:
        """A generator of its own for each key, so that no measure's draws depend on which others were asked for."""
        return np.random.default_rng(
            [self.seed, *(part if isinstance(part, int) else crc32(part.encode()) for part in key)]
        )

    @cached_property
    def unit_T(self) -> np.ndarray:
        """int64 [T]: unit of resampling of each token: documents if there are two or more, else blocks of 64 tokens."""
        documents, unit_T = np.unique(self.trace.doc, return_inverse=True)
        return unit_T if documents.size >= 2 else np.arange(self.trace.num_tokens) // BLOCK_TOKENS

    @cached_property
    def has_documents(self) -> bool:
        return bool(np.unique(self.trace.doc).size >= 2)

    @cached_property
    def num_units(self) -> int:
        return int(self.unit_T.max(initial=-1)) + 1

    @cached_property
    def weights_BU(self) -> np.ndarray:
        """float64 [B, U]: how often each replicate drew each unit; B is 0 where there are fewer than two units."""
        num = self.bootstrap if self.num_units >= 2 else 0
        rng = self.rng("bootstrap")
        rows = [
            np.bincount(rng.integers(self.num_units, size=self.num_units), minlength=self.num_units) for _ in range(num)
        ]
        return np.array(rows, dtype=np.float64).reshape(num, self.num_units)

    @cached_property
    def bootstrap_note(self) -> str:
        if not self.has_documents:
            return f"The interval resamples blocks of {BLOCK_TOKENS} tokens."
        return f"The interval rests on {self.num_units} documents." if self.num_units < FEW_UNITS else ""

    def unit_sums(self, values_n: np.ndarray, tokens_n: np.ndarray | None = None) -> np.ndarray:
        """float64 [U]: sum of one value per token (of `tokens_n`, else of all) within each unit."""
        unit = self.unit_T if tokens_n is None else self.unit_T[tokens_n]
        return np.bincount(unit, weights=values_n.astype(np.float64), minlength=self.num_units)

    def mean_replicates(self, values_n: np.ndarray, tokens_n: np.ndarray | None = None) -> np.ndarray:
        """float64 [B]: bootstrap replicates of the mean of one value per token; NaN where a replicate drew no token."""
        sums_B = self.weights_BU @ self.unit_sums(values_n, tokens_n)
        counts_B = self.weights_BU @ self.unit_sums(np.ones(values_n.shape[0]), tokens_n)
        with np.errstate(invalid="ignore", divide="ignore"):
            means: np.ndarray = sums_B / counts_B
        return means

    def random_counts(self, picks_T: np.ndarray, num_experts: int) -> np.ndarray:
        """`nulls.random_counts`, drawn once per call for all measures and layers whose tokens pick alike."""
        key = (np.bincount(picks_T).tobytes(), num_experts)
        if key not in self._random_counts:
            rng = self.rng("counts", num_experts)
            self._random_counts[key] = random_counts(picks_T, num_experts, self.permutations, rng)
        return self._random_counts[key]


class LayerView:
    """One layer of a trace: its assignments over alive experts. What the router wanted counts, dropped or not."""

    def __init__(self, view: TraceView, layer: int) -> None:
        self.view, self.layer = view, layer
        self.data = view.trace.layers[layer]

    @property
    def bootstrap_note(self) -> str:
        return self.view.bootstrap_note

    @cached_property
    def experts(self) -> np.ndarray:
        """int64 [E]: ids of alive experts; the measures count experts by their place in it."""
        return alive_experts(self.data)

    @property
    def num_experts(self) -> int:
        return int(self.experts.size)

    @cached_property
    def picks_T(self) -> np.ndarray:
        """int64 [T]: experts that each token wanted."""
        picks: np.ndarray = self.data.wanted_TK.sum(axis=1)
        return picks

    @cached_property
    def assignments(self) -> tuple[np.ndarray, np.ndarray]:
        """Token and expert (its place in `experts`) of each wanted assignment, int64 [A] both, tokens ascending."""
        token_A, slot_A = np.nonzero(self.data.wanted_TK)
        place = np.full(int(self.experts.max(initial=0)) + 1, -1)
        place[self.experts] = np.arange(self.num_experts)
        return token_A, place[self.data.expert_TK[token_A, slot_A]]

    @cached_property
    def counts_UE(self) -> np.ndarray:
        """float64 [U, E]: assignments per unit of resampling and expert."""
        token_A, expert_A = self.assignments
        cells = self.view.unit_T[token_A] * self.num_experts + expert_A
        size = self.view.num_units * self.num_experts
        return np.bincount(cells, minlength=size).reshape(-1, self.num_experts).astype(np.float64)

    @cached_property
    def counts_E(self) -> np.ndarray:
        """float64 [E]: assignments per expert."""
        counts: np.ndarray = self.counts_UE.sum(axis=0)
        return counts

    @cached_property
    def counts_BE(self) -> np.ndarray:
        """float64 [B, E]: bootstrap replicates of `counts_E`."""
        counts: np.ndarray = self.view.weights_BU @ self.counts_UE
        return counts

    @cached_property
    def null_counts_PE(self) -> np.ndarray:
        """int64 [P, E]: assignments per expert under even random routing with the same number of picks per token."""
        return self.view.random_counts(self.picks_T, self.num_experts)

    @cached_property
    def dropped_note(self) -> str:
        dropped = int(np.count_nonzero(self.data.wanted_TK & ~self.data.sent_TK))
        total = int(self.picks_T.sum())
        return f"{dropped / total:.1%} of the assignments were dropped; they count as chosen." if dropped else ""

    @cached_property
    def mean_probs_E(self) -> np.ndarray:
        """float64 [E]: mean router distribution over alive experts."""
        probs: np.ndarray = self.data.mean_probs_E[self.experts].astype(np.float64)
        return probs
