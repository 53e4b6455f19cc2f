"""Mutual information between experts and a label: how much the choice of experts says about what a token is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np

from moescope.data.base import Labels
from moescope.metrics.base import Measurement, Metric, numbers
from moescope.metrics.view import LayerView

TOKEN_BUDGET: Final = 40_000_000
CELL_BUDGET: Final = 4_000_000
FEWEST_PERMUTATIONS: Final = 40

Draw = Callable[[int, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class _Labelled:
    """Assignments of labelled tokens. n tokens, A assignments, Y label values that occur, G groups that share a label.

    token_A: place of each assignment's token among the n. expert_A: its expert. weight_A: 1/k of its token.
    label_n: label value of each token, counted among those that occur. group_n: what is permuted, tokens or documents.
    unit_n: unit of resampling.
    """

    token_A: np.ndarray
    expert_A: np.ndarray
    weight_A: np.ndarray
    label_n: np.ndarray
    group_n: np.ndarray
    unit_n: np.ndarray
    values: np.ndarray
    by_document: bool

    @property
    def num_groups(self) -> int:
        return int(self.group_n.max(initial=-1)) + 1


class MutualInformation(Metric):
    """Plug-in I(E; Y) of expert and label, once per label; each of a token's k assignments weighs 1/k.

    The plug-in estimate is never negative and its bias is about (E-1)(|Y|-1)/(2T) nats for independent tokens, more
    where tokens of a document go to the same experts. Permuting labels measures that bias, if what is permuted is what
    was labelled: for a label of whole documents, labels move among documents and every document keeps its tokens
    together.
    """

    name = "mutual_information"
    title = "Mutual information with a label"
    definition = (
        "I(E; Y) = sum p(e,y) log p(e,y) / (p(e) p(y)), plug-in; an assignment weighs 1/k; unlabelled tokens out."
    )
    null = "Labels permuted among whole documents for labels of documents, among labelled tokens for labels of tokens."
    caveat = (
        "The plug-in value is biased upwards: read value minus null. A label of tokens that comes in runs (a syntax "
        "class) is not quite exchangeable, so its p is optimistic."
    )
    unit = "nats"
    tensor = "layer.{layer}.experts"
    source = "Shannon 1948; adjustment for chance as in Vinh et al. 2010, Eq. 4"
    details: ClassVar[Mapping[str, str]] = {
        "corrected": "value minus null mean; cautious where a document label matters: shuffled documents differ more",
        "label_entropy": "H(Y) in nats over the labelled tokens, the most the value can be",
        "normalised": "value / H(Y)",
        "normalised_null": "null mean / H(Y)",
        "adjusted": "(value - null) / (H(Y) - null): 0 by chance, 1 if experts tell the label; null where H(Y) is null",
        "permutations": "label permutations that were drawn",
        "groups": "documents (or tokens) among which labels were permuted",
        "unlabelled": "tokens left out because they have no label",
        "experts": "ids of the alive experts",
        "information": "each expert's part of the value, p(e) KL(p(y|e) || p(y)); they sum to it",
        "information_null": "mean of that part over the permutations",
    }

    def compute(self, view: LayerView) -> Iterator[Measurement]:
        for label, labels in view.view.trace.labels.items():
            yield self._of_label(view, label, labels)

    def _of_label(self, view: LayerView, label: str, labels: Labels) -> Measurement:
        data = _labelled(view, labels)
        n = int(data.label_n.size)
        if n == 0:
            return self.missing(view, f"no token that was routed has the label {label}", label=label)
        if data.values.size < 2:
            only = labels.names[int(data.values[0])]
            return self.missing(view, f"{label} has only one value here ({only})", n=n, label=label)
        shape = (int(data.values.size), view.num_experts)
        part_E = information(_table(data, shape)[None])[0]
        rng = view.view.rng("permute", label)
        part_PE = _null_parts(data, shape, view.view.permutations, rng)
        value, null_P = float(part_E.sum()), part_PE.sum(axis=1)
        detail = self._detail(view, data, value, null_P)
        detail |= {"information": numbers(part_E), "information_null": numbers(part_PE.mean(axis=0))}
        return self.result(
            view,
            value,
            n=n,
            draws_P=null_P,
            replicates_B=_bootstrap(view, data, shape),
            bounds=(0.0, min(detail["label_entropy"], float(np.log(view.num_experts)))),
            label=label,
            notes=(view.dropped_note, _note(data, null_P, value, detail)),
            null_kind="Labels permuted among whole documents."
            if data.by_document
            else "Labels permuted among labelled tokens.",
            detail=detail,
        )

    @staticmethod
    def _detail(view: LayerView, data: _Labelled, value: float, null_P: np.ndarray) -> dict[str, Any]:
        null = float(null_P.mean())
        share_Y = np.bincount(data.label_n) / data.label_n.size
        entropy = float(-(share_Y * np.log(share_Y)).sum())
        return {
            "corrected": value - null,
            "label_entropy": entropy,
            "normalised": value / entropy,
            "normalised_null": null / entropy,
            "adjusted": (value - null) / (entropy - null) if entropy - null > 1e-9 else None,
            "permutations": int(null_P.size),
            "groups": data.num_groups,
            "unlabelled": view.view.trace.num_tokens - int(data.label_n.size),
            "experts": tuple(int(expert) for expert in view.experts),
        }


def _note(data: _Labelled, null_P: np.ndarray, value: float, detail: dict[str, Any]) -> str:
    notes = []
    if detail["unlabelled"]:
        notes.append(f"{detail['unlabelled']:,} unlabelled tokens left out.")
    if data.by_document and data.num_groups == data.values.size:
        notes.append(
            "Permuting changes nothing (as many values as documents): the null cannot tell the label from the document."
        )
    elif data.by_document and data.num_groups < 2 * data.values.size:
        notes.append(f"Only {data.num_groups} labelled documents: a weak test.")
    return " ".join(notes)


def information(tables_NYE: np.ndarray) -> np.ndarray:
    """float64 [N, E]: each expert's part of the mutual information, in nats, of N joint tables; NaN if empty."""
    with np.errstate(invalid="ignore", divide="ignore"):
        p_NYE = tables_NYE / tables_NYE.sum(axis=(1, 2), keepdims=True)
        p_NY, p_NE = p_NYE.sum(axis=2), p_NYE.sum(axis=1)
        joint_NE = _xlogx(p_NYE).sum(axis=1)
        log_NY = np.log(p_NY, out=np.zeros_like(p_NY), where=p_NY > 0)
        parts: np.ndarray = joint_NE - np.einsum("nye,ny->ne", p_NYE, log_NY) - _xlogx(p_NE)
    bounded: np.ndarray = np.maximum(parts, 0.0)
    return bounded


def _xlogx(p: np.ndarray) -> np.ndarray:
    logs: np.ndarray = p * np.log(p, out=np.zeros_like(p), where=p > 0)
    return logs


def _labelled(view: LayerView, labels: Labels) -> _Labelled:
    token_A, expert_A = view.assignments
    use_T = (labels.codes >= 0) & (view.picks_T > 0)
    place_T = np.cumsum(use_T) - 1
    keep_A = use_T[token_A]
    tokens = np.flatnonzero(use_T)
    values, label_n = np.unique(labels.codes[tokens].astype(np.int64), return_inverse=True)
    by_document = labels.scope == "document"
    group_n = np.arange(tokens.size)
    if by_document:
        doc_n = view.view.trace.doc[tokens].astype(np.int64)
        _, group_n = np.unique(doc_n * max(values.size, 1) + label_n, return_inverse=True)
    return _Labelled(
        token_A=place_T[token_A[keep_A]],
        expert_A=expert_A[keep_A],
        weight_A=1.0 / view.picks_T[token_A[keep_A]],
        label_n=label_n,
        group_n=group_n,
        unit_n=view.view.unit_T[tokens],
        values=values,
        by_document=by_document,
    )


def _table(data: _Labelled, shape: tuple[int, int]) -> np.ndarray:
    cells_A = data.label_n[data.token_A] * shape[1] + data.expert_A
    return np.bincount(cells_A, weights=data.weight_A, minlength=shape[0] * shape[1]).reshape(shape)


def _null_parts(data: _Labelled, shape: tuple[int, int], permutations: int, rng: np.random.Generator) -> np.ndarray:
    """float64 [P, E]: `information` under permuted labels. Fewer permutations where there are very many tokens."""
    if not data.by_document:
        permutations = min(permutations, max(FEWEST_PERMUTATIONS, TOKEN_BUDGET // max(1, data.token_A.size)))
    tables_of = _tables_by_document(data, shape) if data.by_document else _tables_by_token(data, shape)
    step = max(1, CELL_BUDGET // (shape[0] * shape[1]))
    chunks = [min(step, permutations - start) for start in range(0, permutations, step)]
    return np.concatenate([information(tables_of(num, rng)) for num in chunks])


def _tables_by_token(data: _Labelled, shape: tuple[int, int]) -> Draw:
    """Joint tables with labels permuted among tokens: a count per permutation."""
    weight_A = None if (data.weight_A == data.weight_A[0]).all() else data.weight_A

    def draw(num: int, rng: np.random.Generator) -> np.ndarray:
        tables = np.empty((num, shape[0] * shape[1]))
        for row in range(num):
            cells_A = (rng.permutation(data.label_n) * shape[1])[data.token_A] + data.expert_A
            tables[row] = np.bincount(cells_A, weight_A, minlength=shape[0] * shape[1])
        return tables.reshape(num, *shape)

    return draw


def _tables_by_document(data: _Labelled, shape: tuple[int, int]) -> Draw:
    """The same with labels permuted among documents, counted once, [G, E]: a permutation says which rows to add up."""
    from scipy.sparse import csr_array

    num_values, num_experts = shape
    groups = data.num_groups
    cells_A = data.group_n[data.token_A] * num_experts + data.expert_A
    count_GE = np.bincount(cells_A, weights=data.weight_A, minlength=groups * num_experts).reshape(groups, num_experts)
    label_G = np.zeros(groups, np.int64)
    label_G[data.group_n] = data.label_n

    def draw(num: int, rng: np.random.Generator) -> np.ndarray:
        label_PG = rng.permuted(np.broadcast_to(label_G, (num, groups)), axis=1)
        rows = (label_PG + num_values * np.arange(num)[:, None]).ravel()
        adds = csr_array(
            (np.ones(rows.size), (rows, np.tile(np.arange(groups), num))), shape=(num * num_values, groups)
        )
        tables: np.ndarray = (adds @ count_GE).reshape(num, num_values, num_experts)
        return tables

    return draw


def _bootstrap(view: LayerView, data: _Labelled, shape: tuple[int, int]) -> np.ndarray:
    """float64 [B]: mutual information of resampled documents (or blocks), from one sparse table per unit."""
    from scipy.sparse import csr_array

    cells_A = data.label_n[data.token_A] * shape[1] + data.expert_A
    used, column_A = np.unique(cells_A, return_inverse=True)
    units = data.unit_n[data.token_A]
    table_UC = csr_array((data.weight_A, (units, column_A)), shape=(view.view.num_units, used.size))
    weights_BU = view.view.weights_BU
    if np.unique(units).size < 2 or weights_BU.shape[0] == 0:
        return np.empty(0)
    step = max(1, CELL_BUDGET // (shape[0] * shape[1]))
    values = []
    for start in range(0, weights_BU.shape[0], step):
        cells_BC = (table_UC.T @ weights_BU[start : start + step].T).T
        tables = np.zeros((cells_BC.shape[0], shape[0] * shape[1]))
        tables[:, used] = cells_BC
        values.append(information(tables.reshape(-1, *shape)).sum(axis=1))
    return np.concatenate(values)
