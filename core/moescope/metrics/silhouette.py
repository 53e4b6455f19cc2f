"""Silhouette of router inputs: are the tokens of one expert closer to each other than to those of the next expert?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Final, Literal

import numpy as np

from moescope.metrics.base import Measurement, Metric, numbers
from moescope.metrics.view import LayerView

EXACT_UP_TO: Final = 4096
QUERIES: Final = 1000
CHUNK_CELLS: Final = 8_000_000
NULL_FLOPS: Final = 1.2e10
FEWEST_SHUFFLES: Final = 20
COLUMNS: Final = 128
"""Columns of one matrix product: so many labellings are summed over clusters together."""

Distance = Literal["euclidean", "cosine"]


class Silhouette(Metric):
    """Mean silhouette of router inputs, clustered by each token's best expert; Euclidean.

    s_i = (b_i - a_i) / max(a_i, b_i), a_i the mean distance to the other tokens of its expert, b_i the smallest mean
    distance to another expert's tokens; 0 for an expert's only token. In the original space, never the 2-D map. Exact
    up to 4,096 vectors; beyond, the mean over 1,000 query vectors, each against all vectors (unbiased; a sub-sample of
    both is not).
    """

    name = "silhouette"
    title = "Silhouette of router inputs (Euclidean)"
    definition = "mean_i (b_i - a_i) / max(a_i, b_i): a_i from its own expert's tokens, b_i from the nearest other's."
    null = "Expert labels shuffled among the same vectors."
    caveat = (
        "The router cuts this very space, so some positive value is no discovery. The interval resamples documents, "
        "with the clusters held as they are."
    )
    unit = "silhouette"
    tensor = "layer.{layer}.hidden"
    source = "Rousseeuw 1987; singletons 0 as in scikit-learn"
    details: ClassVar[Mapping[str, str]] = {
        "exact": "true if every vector was a query, false if 1,000 were",
        "queries": "vectors whose silhouette was computed",
        "vectors": "vectors they were compared with",
        "shuffles": "label shuffles that were drawn",
        "experts": "ids of experts that are the best of at least one sampled token",
        "per_expert": "mean silhouette over each such expert's queries; null where there is none",
        "tokens": "sampled tokens of each such expert",
    }
    distance: ClassVar[Distance] = "euclidean"

    def compute(self, view: LayerView) -> Iterator[Measurement]:
        hidden, sample = view.data.hidden_nd, view.view.trace.sample
        if hidden is None or sample is None or hidden.shape[0] == 0:
            yield self.missing(view, "the trace holds no hidden vectors")
            return
        top_n = view.data.top1_T[sample]
        used = (top_n >= 0) & np.isfinite(hidden).all(axis=1)
        experts, label_n = np.unique(top_n[used], return_inverse=True)
        if experts.size < 2:
            yield self.missing(view, "the sampled tokens have fewer than two best experts", n=int(label_n.size))
            return
        yield self._of(view, hidden[used], label_n, experts, sample[used])

    def _of(
        self, view: LayerView, hidden_nd: np.ndarray, label_n: np.ndarray, experts: np.ndarray, tokens_n: np.ndarray
    ) -> Measurement:
        n = int(label_n.size)
        query = np.arange(n)
        if n > EXACT_UP_TO:
            query = spread_queries(label_n, QUERIES, view.view.rng("queries", view.layer))
        shuffles = self._num_shuffles(view.view.permutations, query.size * n * experts.size)
        rng = view.view.rng("shuffle", view.layer)
        labels_Pn = np.stack([label_n, *(rng.permutation(label_n) for _ in range(shuffles))])
        score_Pq = silhouettes(hidden_nd, labels_Pn, query, self.distance)
        score_q, num_E = score_Pq[0], np.bincount(label_n)
        asked_E = np.bincount(label_n[query], minlength=experts.size)
        sums_E = np.bincount(label_n[query], weights=score_q, minlength=experts.size)
        return self.result(
            view,
            float(score_q.mean()),
            n=n,
            draws_P=score_Pq[1:].mean(axis=1),
            replicates_B=view.view.mean_replicates(score_q, tokens_n[query]),
            bounds=(-1.0, 1.0),
            notes=("" if query.size == n else f"{query.size:,} query vectors against all {n:,}.",),
            detail={
                "exact": bool(query.size == n),
                "queries": int(query.size),
                "vectors": n,
                "shuffles": shuffles,
                "experts": tuple(int(expert) for expert in experts),
                "per_expert": tuple(float(s / c) if c else None for s, c in zip(sums_E, asked_E, strict=True)),
                "tokens": numbers(num_E),
            },
        )

    @staticmethod
    def _num_shuffles(permutations: int, cells: int) -> int:
        return min(permutations, max(FEWEST_SHUFFLES, int(NULL_FLOPS / (2 * cells))))


class SilhouetteCosine(Silhouette):
    """The same by cosine distance, 1 - cos; a zero vector is at distance 1 from every vector."""

    name = "silhouette_cosine"
    title = "Silhouette of router inputs (cosine)"
    definition = (
        "The silhouette by cosine distance 1 - cos(h_i, h_j): direction alone, whatever the length of a vector."
    )
    distance = "cosine"


def spread_queries(label_n: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
    """int64 [num], ascending: a systematic sample over tokens ordered by expert, every token equally likely.

    The mean over it is unbiased, and each expert has its share of the queries up to one.
    """
    order = np.lexsort((rng.random(label_n.size), label_n))
    places = ((np.arange(num) + rng.random()) * (label_n.size / num)).astype(np.int64)
    return np.sort(order[places])


def silhouettes(
    hidden_nd: np.ndarray,
    labels_Pn: np.ndarray,
    query: np.ndarray,
    distance: Distance = "euclidean",
) -> np.ndarray:
    """float64 [P, q]: silhouette of each query vector under each of P labellings, every one with all clusters present.

    Distances are computed once for all labellings, a block of queries at a time; sums over clusters are matrix
    products.
    """
    num_clusters = int(labels_Pn.max()) + 1
    num_draws, together = labels_Pn.shape[0], max(1, COLUMNS // num_clusters)
    cluster_cc = np.eye(num_clusters, dtype=np.float32)
    count_Pc = np.stack([np.bincount(labels, minlength=num_clusters) for labels in labels_Pn])
    scores = np.empty((num_draws, query.size))
    vectors = _prepare(hidden_nd, distance)
    step = max(1, CHUNK_CELLS // vectors.shape[0])
    for start in range(0, query.size, step):
        rows = query[start : start + step]
        distance_qn = _distances(vectors, rows, distance)
        for first in range(0, num_draws, together):
            labels_Dn = labels_Pn[first : first + together]
            member_nDc = cluster_cc[labels_Dn.T].reshape(labels_Dn.shape[1], -1)
            sums_qDc = (distance_qn @ member_nDc).reshape(rows.size, -1, num_clusters)
            for draw, labels in enumerate(labels_Dn, first):
                one = _scores(sums_qDc[:, draw - first], labels[rows], count_Pc[draw])
                scores[draw, start : start + step] = one
    return scores


def _prepare(hidden_nd: np.ndarray, distance: Distance) -> np.ndarray:
    """float32 [n, d]: centred, so that squares do not cancel; or of length 1, a zero vector left as it is."""
    vectors = hidden_nd.astype(np.float64)
    if distance == "cosine":
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors /= np.where(norms > 0, norms, 1)
    else:
        vectors -= vectors.mean(axis=0)
    return vectors.astype(np.float32)


def _distances(vectors: np.ndarray, rows: np.ndarray, distance: Distance) -> np.ndarray:
    """float32 [q, n], by one matrix product."""
    cells: np.ndarray = vectors[rows] @ vectors.T
    if distance == "cosine":
        cells = np.clip(1 - cells, 0, 2)
    else:
        squares = np.einsum("nd,nd->n", vectors, vectors)
        cells = np.sqrt(np.maximum(squares[rows, None] - 2 * cells + squares, 0))
    cells[np.arange(rows.size), rows] = 0
    return cells


def _scores(sums_qc: np.ndarray, label_q: np.ndarray, count_c: np.ndarray) -> np.ndarray:
    rows = np.arange(label_q.size)
    own_q = count_c[label_q]
    within_q = sums_qc[rows, label_q] / np.maximum(own_q - 1, 1)
    mean_qc = sums_qc / count_c
    mean_qc[rows, label_q] = np.inf
    between_q = mean_qc.min(axis=1)
    largest_q = np.maximum(within_q, between_q)
    score: np.ndarray = np.where(
        (own_q > 1) & (largest_q > 0), (between_q - within_q) / np.where(largest_q > 0, largest_q, 1), 0.0
    )
    return score
