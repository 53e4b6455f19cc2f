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
        pair_YY = divergences(data.sums(data.label_G))
        cells = max(data.num_groups * view.num_experts, 1)
        draws = min(view.view.permutations, max(FEWEST_PERMUTATIONS, CELLS // cells))
        rng = view.view.rng("groups", label)
        null_P = np.array([mean_of_pairs(divergences(data.sums(rng.permutation(data.label_G)))) for _ in range(draws)])
        value = mean_of_pairs(pair_YY)
        detail = {
            "corrected": value - float(null_P.mean()),
            "pairs": int(values.size * (values.size - 1) // 2),
            "values": tuple(int(code) for code in values),
            "tokens": numbers(np.bincount(data.label_n, minlength=values.size)),
            "per_value": numbers(pair_YY.sum(axis=1) / (values.size - 1)),
            "largest": float(pair_YY.max()),
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

    def sums(self, label_G: np.ndarray) -> np.ndarray:
        """float64 [Y, E] under a labelling of the groups."""
        return _sums(np.ones(label_G.size), label_G, self.sum_GE, self.num_values)


def _grouped(view: LayerView, labels: Labels, tokens: np.ndarray, values: np.ndarray, mass_nE: Any) -> _Grouped:
    label_n = np.searchsorted(values, labels.codes[tokens])
    if labels.scope != "document":
        return _Grouped(label_n, label_n, mass_nE, mass_nE, int(values.size), False)
    pairs, group_n = np.unique(
        view.view.trace.doc[tokens].astype(np.int64) * values.size + label_n, return_inverse=True
    )
    sum_GE = _sums(np.ones(label_n.size), group_n, mass_nE, pairs.size)
    return _Grouped(label_n, pairs % values.size, mass_nE, sum_GE, int(values.size), True)


def _compared(code_n: np.ndarray) -> tuple[np.ndarray, int]:
    """Codes, ascending, of the most frequent values with enough tokens, and how many others occur."""
    values, count = np.unique(code_n, return_counts=True)
    order = np.argsort(-count, kind="stable")[:MOST_VALUES]
    kept = np.sort(order[count[order] >= FEWEST_TOKENS])
    return values[kept], int(values.size - kept.size)


def _sums(weight_R: np.ndarray, label_R: np.ndarray, rows_RE: Any, num: int) -> np.ndarray:
    """float64 [num, E]: weighted sums of the rows that carry each label."""
    from scipy.sparse import csr_array

    adds = csr_array((weight_R, (label_R, np.arange(label_R.size))), shape=(num, label_R.size))
    made = adds @ rows_RE
    return np.asarray(made.toarray() if hasattr(made, "toarray") else made, np.float64)


def divergences(sum_YE: np.ndarray) -> np.ndarray:
    """float64 [Y, Y]: JSD in bits of every two rows, each over its own sum; NaN with a row whose sum is 0."""
    total_Y = sum_YE.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        share_YE = sum_YE / total_Y[:, None]
    own_Y = _entropy(share_YE)
    made = np.zeros((len(sum_YE), len(sum_YE)))
    for y in range(len(sum_YE) - 1):
        middle = _entropy((share_YE[y] + share_YE[y + 1 :]) / 2)
        made[y, y + 1 :] = made[y + 1 :, y] = np.clip(middle - (own_Y[y] + own_Y[y + 1 :]) / 2, 0.0, 1.0)
    return made


def mean_of_pairs(pair_YY: np.ndarray) -> float:
    """Mean over the pairs that are defined; NaN where none is."""
    found = pair_YY[np.triu_indices(len(pair_YY), 1)]
    found = found[np.isfinite(found)]
    return float(found.mean()) if found.size else float("nan")


def _entropy(share_YE: np.ndarray) -> np.ndarray:
    """Bits, 0 log 0 = 0."""
    logs = np.log2(share_YE, out=np.zeros_like(share_YE), where=share_YE > 0)
    total: np.ndarray = -(share_YE * logs).sum(axis=-1)
    return total


def _replicates(view: LayerView, tokens: np.ndarray, data: _Grouped) -> np.ndarray:
    """float64 [B]: the measure of resampled documents (or blocks), their rows summed once per unit and value."""
    unit_n, weights_BU, num = view.view.unit_T[tokens], view.view.weights_BU, data.num_values
    if np.unique(unit_n).size < 2:
        return np.empty(0)
    rows, row_n = np.unique(unit_n * num + data.label_n, return_inverse=True)
    sum_RE = _sums(np.ones(row_n.size), row_n, data.mass_nE, rows.size)
    unit_R, label_R = rows // num, rows % num
    made = [mean_of_pairs(divergences(_sums(weight_R, label_R, sum_RE, num))) for weight_R in weights_BU[:, unit_R]]
    return np.array(made, np.float64)


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
