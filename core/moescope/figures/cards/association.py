"""Which experts a label's tokens really go to: effect, significance and replication, weighed before a word is said.

A cell is one (layer, label, value y, expert e). Its effect is the share p of y's tokens that choose e, against the
share q of all labelled tokens that do. It counts as found if

- the effect is worth a look: p / q >= 1.5 and p - q >= 0.10, on at least 30 tokens of y in at least 3 units;
- it is significant, although tokens of one unit are not independent (a unit is a document, or a block of 64 tokens
  where there is one document). A label of whole documents is permuted among documents; beyond 64 documents, and for a
  label of tokens, Student's t with a variance over units and the smaller group's units less one. One-sided, Benjamini
  and Hochberg (1995) at 5 % over **all** cells of the label, those without effect included;
- it replicates: in both halves of the units (every second unit of y, and of the rest) log2 p / q keeps half the floor.

Shapes: T tokens, U units, E alive experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from moescope.data.base import Labels
from moescope.figures.cards.significance import MOST_PERMUTED, clustered, permuted
from moescope.metrics.view import BLOCK_TOKENS, alive_experts
from moescope.trace.schema import LayerTrace, Trace

MIN_RATIO, MIN_DIFFERENCE, MIN_TOKENS, MIN_UNITS, FDR = 1.5, 0.10, 30, 3, 0.05


@dataclass(frozen=True)
class Cell:
    """One tested cell. `share` is p, `base` is q, `tokens` and `units` are y's; `replicated` says both halves agree."""

    layer: int
    label: str
    value: int
    expert: int
    share: float
    base: float
    tokens: int
    units: int
    p: float
    replicated: bool

    @property
    def surprise(self) -> float:
        """Kullback-Leibler divergence, in nats, of choosing e for y's tokens from choosing it for all: size, not n."""
        p, q = min(self.share, 1 - 1e-9), min(max(self.base, 1e-9), 1 - 1e-9)
        return p * float(np.log(p / q)) + (1 - p) * float(np.log((1 - p) / (1 - q)))

    @property
    def order(self) -> tuple[float, int, int, str, int]:
        """Largest surprise first, and never undecided."""
        return -self.surprise, self.layer, self.expert, self.label, self.value


def units(trace: Trace) -> np.ndarray:
    """int64 [T]: the unit of each token, documents where there are two or more, else blocks."""
    documents, unit_T = np.unique(trace.doc, return_inverse=True)
    return unit_T if documents.size >= 2 else np.arange(trace.num_tokens) // BLOCK_TOKENS


def discoveries(cells: list[Cell], tested: int) -> list[tuple[Cell, float]]:
    """The cells found, with their adjusted p (Benjamini and Hochberg over `tested` cells), largest surprise first."""
    ranked = sorted(cells, key=lambda cell: cell.p)
    found, adjusted = [], 1.0
    for rank in range(len(ranked), 0, -1):
        cell = ranked[rank - 1]
        adjusted = min(adjusted, cell.p * tested / rank)
        if adjusted <= FDR and cell.replicated:
            found.append((cell, adjusted))
    return sorted(found, key=lambda item: item[0].order)


def label_cells(trace: Trace, label: str, labels: Labels) -> tuple[list[Cell], int]:
    """Cells of one label with an effect, over all layers, and how many cells were tested in all."""
    unit_T = units(trace)
    if labels.scope == "document" and np.unique(trace.doc).size < 2:
        return [], 0
    parts = [_layer_cells(trace.layers[layer], label, labels, unit_T) for layer in trace.layer_ids]
    return [cell for cells, _ in parts for cell in cells], sum(tested for _, tested in parts)


def _layer_cells(traced: LayerTrace, label: str, labels: Labels, unit_T: np.ndarray) -> tuple[list[Cell], int]:
    cells: list[Cell] = []
    tested = 0
    expert_E = alive_experts(traced)
    place = np.full(int(expert_E.max(initial=0)) + 1, -1)
    place[expert_E] = np.arange(expert_E.size)
    token_A, slot_A = np.nonzero(traced.wanted_TK)
    column_A = place[traced.expert_TK[token_A, slot_A]]
    counts = _Counts(labels, unit_T, token_A, column_A, expert_E.size)
    for value, share_E, tokens, num_units in counts.values(len(labels.names)):
        tested += expert_E.size
        effect = (share_E >= MIN_RATIO * counts.base_E) & (share_E - counts.base_E >= MIN_DIFFERENCE)
        for column, p, replicated in counts.compare(value, np.flatnonzero(effect)):
            cells.append(
                Cell(
                    traced.meta.layer, label, value, int(expert_E[column]), float(share_E[column]),
                    float(counts.base_E[column]), tokens, num_units, p, replicated,
                )
            )  # fmt: skip
    return cells, tested


class _Counts:
    """Tokens and choices per unit of one label in one layer."""

    def __init__(
        self, labels: Labels, unit_T: np.ndarray, token_A: np.ndarray, column_A: np.ndarray, num_experts: int
    ) -> None:
        code_T, self.by_unit = labels.codes, labels.scope == "document"
        labelled_A = code_T[token_A] >= 0
        self.num_experts, self.num_units = num_experts, int(unit_T.max(initial=-1)) + 1
        self.code_T, self.unit_T = code_T, unit_T
        self.code_A, self.unit_A = code_T[token_A][labelled_A], unit_T[token_A][labelled_A]
        self.column_A = column_A[labelled_A]
        self.tokens_U = np.bincount(unit_T[code_T >= 0], minlength=self.num_units).astype(np.float64)
        self.chosen_UE = self._chosen(np.ones(self.code_A.size, bool))
        self.base_E = self.chosen_UE.sum(0) / max(self.tokens_U.sum(), 1.0)

    def _chosen(self, keep_A: np.ndarray) -> np.ndarray:
        flat = self.unit_A[keep_A] * self.num_experts + self.column_A[keep_A]
        counts = np.bincount(flat, minlength=self.num_units * self.num_experts)
        return counts.reshape(self.num_units, self.num_experts).astype(np.float64)

    def values(self, num_values: int) -> Iterator[tuple[int, np.ndarray, int, int]]:
        """(value, share_E, tokens, units) of every value with enough tokens and units, of y and of the others."""
        size_V = np.bincount(self.code_T[self.code_T >= 0], minlength=num_values)
        flat = self.code_A.astype(np.int64) * self.num_experts + self.column_A
        chosen_VE = np.bincount(flat, minlength=num_values * self.num_experts).reshape(num_values, self.num_experts)
        for value in np.flatnonzero((size_V >= MIN_TOKENS) & (size_V < size_V.sum())).tolist():
            spread = int(np.unique(self.unit_T[self.code_T == value]).size)
            if spread >= MIN_UNITS:
                yield value, chosen_VE[value] / size_V[value], int(size_V[value]), spread

    def compare(self, value: int, columns: np.ndarray) -> Iterator[tuple[int, float, bool]]:
        """(column, one-sided p, replicated) for each of `columns`: y's tokens against the other labelled tokens."""
        if not columns.size:
            return
        mine_U = np.bincount(self.unit_T[self.code_T == value], minlength=self.num_units).astype(np.float64)
        rest_U = self.tokens_U - mine_U
        got_UC = self._chosen(self.code_A == value)[:, columns]
        other_UC = self.chosen_UE[:, columns] - got_UC
        degrees = int(min(np.count_nonzero(mine_U), np.count_nonzero(rest_U))) - 1
        if degrees < 1:
            return
        labelled_U = self.tokens_U > 0
        if self.by_unit and labelled_U.sum() <= MOST_PERMUTED:
            p_C = permuted(self.chosen_UE[labelled_U][:, columns], self.tokens_U[labelled_U], mine_U[labelled_U] > 0)
        else:
            p_C = clustered(got_UC, mine_U, other_UC, rest_U, degrees)
        same_C = np.ones(columns.size, bool)
        for half in (0, 1):
            y_U, r_U = _half(mine_U > 0, half), _half(mine_U == 0, half)
            in_U = y_U | r_U
            tokens = max(self.tokens_U[in_U].sum(), 1.0)
            base_C = self.chosen_UE[in_U][:, columns].sum(0) / tokens
            share_C = got_UC[in_U].sum(0) / max(mine_U[in_U].sum(), 1.0)
            same_C &= share_C >= base_C * MIN_RATIO**0.5
        yield from zip(columns.tolist(), p_C.tolist(), same_C.tolist(), strict=True)


def _half(member_U: np.ndarray, half: int) -> np.ndarray:
    """bool [U]: every second member, from the first or from the second."""
    chosen: np.ndarray = member_U & ((np.cumsum(member_U) + half) % 2 == 1)
    return chosen
