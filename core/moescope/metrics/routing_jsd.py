"""Jensen-Shannon divergence of routing between the values of a label: are groups of tokens routed differently?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np

from moescope.data.base import Labels
from moescope.metrics.base import Measurement, Metric, numbers
from moescope.metrics.scores import probs
from moescope.metrics.view import LayerView

FEWEST_TOKENS: Final = 10
MOST_VALUES: Final = 40
CELLS: Final = 400_000_000
AT_ONCE: Final = 1_000_000
FEWEST_PERMUTATIONS: Final = 40


class RoutingJSD(Metric):
    """Mean over pairs of a label's values of JSD(P_y, P_z), P_y the mean routing distribution of y's tokens; base 2.

    JSD(P, Q) = H((P + Q) / 2) - (H(P) + H(Q)) / 2, in [0, 1]. Here P_y are the shares of y's assignments, after
    selection: a token's k assignments weigh 1/k each. Small groups differ by chance, hence the null.
    """

    name = "routing_jsd"
    title = "Routing divergence between groups (after selection)"
    definition = (
        "Mean over pairs of a label's values of JSD(P_y, P_z), base 2; P_y: shares of y's assignments, each 1/k; "
        f"values with fewer than {FEWEST_TOKENS} tokens out."
    )
    null = "Labels permuted among whole documents for labels of documents, among labelled tokens for labels of tokens."
    caveat = (
        "The plug-in value is biased upwards, most where groups are small: read value minus null. A mean over pairs "
        "hides one pair that differs; the detail has each value's own mean."
    )
    unit = "bits"
    tensor = "layer.{layer}.experts"
    source = "MASS 2512.19765; Lin 1991"
    details: ClassVar[Mapping[str, str]] = {
        "corrected": "value minus null mean",
        "pairs": "pairs of values compared",
        "values": "codes of the values compared",
        "tokens": "tokens of each value compared",
        "per_value": "mean divergence of each such value from the others",
        "largest": "the largest divergence of a pair",
        "left_out": "values with too few tokens, or beyond the most frequent ones",
        "permutations": "label permutations that were drawn",
        "groups": "documents (or tokens) among which labels were permuted",
    }

    def compute(self, view: LayerView) -> Iterator[Measurement]:
        mass_TE = self.mass(view)
        for label, labels in view.view.trace.labels.items():
            if mass_TE is None:
                yield self.missing(view, "the router's distribution cannot be rebuilt from the trace", label=label)
            else:
                yield self._of_label(view, label, labels, mass_TE)

    def mass(self, view: LayerView) -> Any:
        """[T, E], dense or sparse: each token's distribution over the alive experts; a row of 0 has none."""
        from scipy.sparse import csr_array

        token_A, expert_A = view.assignments
        weight_A = 1.0 / view.picks_T[token_A]
        shape = (view.view.trace.num_tokens, max(view.num_experts, 1))
        return csr_array((weight_A, (token_A, expert_A)), shape=shape)

    def _of_label(self, view: LayerView, label: str, labels: Labels, mass_TE: Any) -> Measurement:
        use_T = (labels.codes >= 0) & (view.picks_T > 0)
        values, left_out = _compared(labels.codes[use_T])
        tokens = np.flatnonzero(use_T & np.isin(labels.codes, values))
        if values.size < 2:
            why = f"{label} has fewer than two values with {FEWEST_TOKENS} tokens"
            return self.missing(view, why, n=int(tokens.size), label=label)
        data = _grouped(view, labels, tokens, values, mass_TE[tokens])
        pair_V, value = _measured(data.sums(data.label_G[None]))
        cells = max(data.num_groups * view.num_experts, 1)
        draws = min(view.view.permutations, max(FEWEST_PERMUTATIONS, CELLS // cells))
        rng = view.view.rng("groups", label)
        null_P = data.over(rng.permuted(np.broadcast_to(data.label_G, (draws, data.num_groups)), axis=1))
        detail = {
            "corrected": value - float(null_P.mean()),
            "pairs": int(values.size * (values.size - 1) // 2),
            "values": tuple(int(code) for code in values),
            "tokens": numbers(np.bincount(data.label_n, minlength=values.size)),
            "per_value": numbers(_per_value(pair_V, int(values.size))),
            "largest": float(pair_V.max()),
            "left_out": left_out,
            "permutations": int(null_P.size),
            "groups": data.num_groups,
        }
        return self.result(
            view,
            value,
            n=int(tokens.size),
            draws_P=null_P,
            replicates_B=_replicates(view, tokens, data),
            bounds=(0.0, 1.0),
            label=label,
            notes=(view.dropped_note, _note(data, left_out)),
            null_kind=f"Labels permuted among {'whole documents' if data.by_document else 'labelled tokens'}.",
            detail=detail,
        )


class RoutingJSDFull(RoutingJSD):
    """The same of the router's full distribution, before any expert is selected."""

    name = "routing_jsd_full"
    title = "Routing divergence between groups (before selection)"
    definition = (
        "Mean over pairs of a label's values of JSD(P_y, P_z), base 2; P_y: mean of the router's full distribution "
        f"over y's tokens; values with fewer than {FEWEST_TOKENS} tokens out."
    )
    tensor = "layer.{layer}.logits"

    def mass(self, view: LayerView) -> Any:
        return probs(view)


@dataclass(frozen=True)
class _Grouped:
    """n tokens with one of Y values, in G groups that share a label: what is permuted, documents or tokens.

    mass_nE: each token's distribution; sum_GE: each group's sum of them. Dense or sparse.
    """

    label_n: np.ndarray
    label_G: np.ndarray
    mass_nE: Any
    sum_GE: Any
    num_values: int
    by_document: bool

    @property
    def num_groups(self) -> int:
        return int(self.label_G.size)

    def sums(self, label_PG: np.ndarray) -> np.ndarray:
        """float64 [P, Y, E] under labellings of the groups."""
        return _sums(np.ones(label_PG.shape), label_PG, self.sum_GE, self.num_values)

    def over(self, label_PG: np.ndarray) -> np.ndarray:
        """float64 [P]: the measure under each labelling, some at a time."""
        step = _at_once(self.num_values, self.sum_GE.shape[1], label_PG.shape[1])
        return np.concatenate(
            [_means(divergences(self.sums(label_PG[i : i + step]))) for i in range(0, len(label_PG), step)]
        )


def _grouped(view: LayerView, labels: Labels, tokens: np.ndarray, values: np.ndarray, mass_nE: Any) -> _Grouped:
    label_n = np.searchsorted(values, labels.codes[tokens])
    if labels.scope != "document":
        return _Grouped(label_n, label_n, mass_nE, mass_nE, int(values.size), False)
    pairs, group_n = np.unique(
        view.view.trace.doc[tokens].astype(np.int64) * values.size + label_n, return_inverse=True
    )
    sum_GE = _sums(np.ones((1, label_n.size)), group_n[None], mass_nE, pairs.size)[0]
    return _Grouped(label_n, pairs % values.size, mass_nE, sum_GE, int(values.size), True)


def _compared(code_n: np.ndarray) -> tuple[np.ndarray, int]:
    """Codes, ascending, of the most frequent values with enough tokens, and how many others occur."""
    values, count = np.unique(code_n, return_counts=True)
    order = np.argsort(-count, kind="stable")[:MOST_VALUES]
    kept = np.sort(order[count[order] >= FEWEST_TOKENS])
    return values[kept], int(values.size - kept.size)


def _sums(weight_PR: np.ndarray, label_PR: np.ndarray, rows_RE: Any, num: int) -> np.ndarray:
    """float64 [P, num, E]: weighted sums of the rows that carry each label, P times."""
    from scipy.sparse import csr_array

    draws, rows = label_PR.shape
    place_PR = label_PR + num * np.arange(draws)[:, None]
    adds = csr_array(
        (weight_PR.ravel(), (place_PR.ravel(), np.tile(np.arange(rows), draws))), shape=(draws * num, rows)
    )
    made = adds @ rows_RE
    dense = made.toarray() if hasattr(made, "toarray") else made
    return np.asarray(dense, np.float64).reshape(draws, num, -1)


def _at_once(num_values: int, num_experts: int, rows: int) -> int:
    """Draws that are computed together."""
    return max(1, AT_ONCE // (num_values * num_values * num_experts // 2 + rows))


def divergences(sum_NYE: np.ndarray) -> np.ndarray:
    """float64 [N, pairs]: JSD in bits of every two rows, each over its own sum; NaN with a row whose sum is 0.

    Pairs are in the order of `np.triu_indices(Y, 1)`.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        share_NYE = sum_NYE / sum_NYE.sum(axis=2, keepdims=True)
    own_NY = _entropy(share_NYE)
    first, second = np.triu_indices(sum_NYE.shape[1], 1)
    middle_NV = _entropy((share_NYE[:, first] + share_NYE[:, second]) / 2)
    found: np.ndarray = np.clip(middle_NV - (own_NY[:, first] + own_NY[:, second]) / 2, 0.0, 1.0)
    return found


def _means(pair_NV: np.ndarray) -> np.ndarray:
    """float64 [N]: mean over the pairs that are defined; NaN where none is."""
    known = np.isfinite(pair_NV)
    with np.errstate(invalid="ignore"):
        means: np.ndarray = np.where(known, pair_NV, 0.0).sum(axis=1) / known.sum(axis=1)
    return means


def _measured(sum_1YE: np.ndarray) -> tuple[np.ndarray, float]:
    pair_1V = divergences(sum_1YE)
    return pair_1V[0], float(_means(pair_1V)[0])


def _per_value(pair_V: np.ndarray, num: int) -> np.ndarray:
    """float64 [Y]: mean divergence of each value from the others."""
    total_Y = np.zeros(num)
    for side in np.triu_indices(num, 1):
        np.add.at(total_Y, side, pair_V)
    return total_Y / (num - 1)


def _entropy(share_NYE: np.ndarray) -> np.ndarray:
    """Bits over the last axis, 0 log 0 = 0."""
    logs = np.log2(share_NYE, out=np.zeros_like(share_NYE), where=share_NYE > 0)
    total: np.ndarray = -(share_NYE * logs).sum(axis=-1)
    return total


def _replicates(view: LayerView, tokens: np.ndarray, data: _Grouped) -> np.ndarray:
    """float64 [B]: the measure of resampled documents (or blocks), their rows summed once per unit and value."""
    unit_n, weights_BU, num = view.view.unit_T[tokens], view.view.weights_BU, data.num_values
    if np.unique(unit_n).size < 2 or not len(weights_BU):
        return np.empty(0)
    rows, row_n = np.unique(unit_n * num + data.label_n, return_inverse=True)
    sum_RE = _sums(np.ones((1, row_n.size)), row_n[None], data.mass_nE, rows.size)[0]
    step = _at_once(num, sum_RE.shape[1], rows.size)
    made = []
    for start in range(0, len(weights_BU), step):
        weight_BR = weights_BU[start : start + step, rows // num]
        label_BR = np.broadcast_to(rows % num, weight_BR.shape)
        made.append(_means(divergences(_sums(weight_BR, label_BR, sum_RE, num))))
    return np.concatenate(made)


def _note(data: _Grouped, left_out: int) -> str:
    notes = []
    if left_out:
        why = f"fewer than {FEWEST_TOKENS} tokens, or beyond the {MOST_VALUES} most frequent"
        notes.append(f"{left_out} values left out ({why}).")
    if data.by_document and data.num_groups == data.num_values:
        notes.append("Permuting changes nothing (as many values as documents).")
    elif data.by_document and data.num_groups < 2 * data.num_values:
        notes.append(f"Only {data.num_groups} labelled documents: a weak test.")
    return " ".join(notes)
