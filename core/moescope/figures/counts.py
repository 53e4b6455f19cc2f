"""Counting who went where: the few tables that figures and cards share.

An assignment is one wanted (token, expert) pair: what the router decided, before a capacity limit dropped any. Load is
the share of assignments. The null of a load is even routing: every token draws its number of distinct experts at
random, independently of other tokens, so that count_e has variance sum_i (k_i / E)(1 - k_i / E).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from moescope.data.base import Labels
from moescope.errors import InputError
from moescope.trace.schema import LayerTrace, Trace

MIN_COUNT = 5
"""A cell with fewer assignments, seen and expected, says 'not enough data'."""


@dataclass(frozen=True)
class Load:
    """Assignments per expert of one layer. `std_E` is the null's standard deviation of `load_E`, whose mean is 1 / E."""

    count_E: np.ndarray
    dropped_E: np.ndarray
    load_E: np.ndarray
    std: float
    tokens: int

    @property
    def assignments(self) -> int:
        return int(self.count_E.sum())

    @property
    def dropped(self) -> int:
        return int(self.dropped_E.sum())


def get_layer(trace: Trace, layer: int) -> LayerTrace:
    """The traced layer. Raises `InputError` where the trace has no such MoE layer."""
    if layer not in trace.layers:
        known = ", ".join(str(i) for i in trace.layer_ids)
        raise InputError(f"Layer {layer} is not an MoE layer of this trace; its MoE layers are {known}.")
    return trace.layers[layer]


def get_label(trace: Trace, label: str) -> Labels:
    """The label's codes and names. Raises `InputError` where the trace carries no such label."""
    if label not in trace.labels:
        known = ", ".join(trace.labels) or "none"
        raise InputError(f"The trace has no label {label!r}; its labels are: {known}.")
    return trace.labels[label]


def layer_load(traced: LayerTrace) -> Load:
    """Count the assignments of one layer."""
    num_experts = traced.meta.num_experts
    wanted = traced.wanted_TK
    count = np.bincount(traced.expert_TK[wanted], minlength=num_experts)
    dropped = np.bincount(traced.expert_TK[wanted & ~traced.sent_TK], minlength=num_experts)
    share_T = wanted.sum(1) / num_experts
    total = int(count.sum())
    std = math.sqrt(float((share_T * (1 - share_T)).sum())) / total if total else 0.0
    return Load(count, dropped, count / max(total, 1), std, len(wanted))


def label_counts(traced: LayerTrace, labels: Labels) -> np.ndarray:
    """int64 [Y, E]: assignments of the tokens that carry each value; unlabelled tokens are left out."""
    num_experts = traced.meta.num_experts
    counted = traced.wanted_TK & (labels.codes >= 0)[:, None]
    rows, _ = np.nonzero(counted)
    flat = labels.codes[rows].astype(np.int64) * num_experts + traced.expert_TK[counted]
    size = len(labels.names) * num_experts
    table: np.ndarray = np.bincount(flat, minlength=size).reshape(len(labels.names), num_experts)
    return table


def lift(count_YE: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """log2 P(e|y) / P(e) with one pseudo-count spread by the loads.

    Returns (lift_YE in bits, base_E, enough_YE). `base_E` is P(e) over the counted assignments; `enough_YE` is False
    where both the seen and the expected number of assignments are below `MIN_COUNT`, and lift is NaN there.
    """
    total_Y1 = count_YE.sum(1, keepdims=True)
    base_E = count_YE.sum(0) / max(int(count_YE.sum()), 1)
    enough = np.maximum(count_YE, total_Y1 * base_E) >= MIN_COUNT
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.log2((count_YE + base_E) / (total_Y1 + 1) / base_E)
    return np.where(enough & (base_E > 0), value, np.nan), base_E, enough & (base_E > 0)


def chosen_TE(traced: LayerTrace) -> np.ndarray:
    """bool [T, E]: which experts each token wanted."""
    num_tokens, _ = traced.expert_TK.shape
    chosen = np.zeros((num_tokens, traced.meta.num_experts), dtype=bool)
    rows, cols = np.nonzero(traced.wanted_TK)
    chosen[rows, traced.expert_TK[rows, cols]] = True
    return chosen


def confidence(traced: LayerTrace) -> tuple[np.ndarray, str]:
    """float64 [T] and its name: the router's top probability where the trace shows it, else the largest gate.

    Softmax of the kept logits is taken for the router's distribution only if its entropy is the recorded entropy: a
    sigmoid router's is another.
    """
    logits = traced.logits_TE
    if logits is not None:
        alive = logits - logits.max(1, keepdims=True)
        weight = np.exp(alive, dtype=np.float64)
        norm = weight.sum(1)
        finite = np.where(np.isfinite(alive), alive, 0.0)
        entropy = np.log(norm) - (weight * finite).sum(1) / norm
        if np.allclose(entropy, traced.entropy_T, atol=2e-3):
            return 1.0 / norm, "top router probability"
    return np.where(traced.wanted_TK, traced.gate_TK, 0).max(1).astype(np.float64), "largest gate"


def document_names(trace: Trace) -> list[str]:
    """One name per document: as the data's source says, else its number."""
    known = trace.meta.data.get("documents")
    total = int(trace.doc[-1]) + 1 if trace.num_tokens else 0
    names = [str(name) for name in known] if isinstance(known, (list, tuple)) else []
    return [names[i] if i < len(names) else f"document {i}" for i in range(total)]


def document_spans(trace: Trace) -> Iterator[tuple[int, int, int]]:
    """(document, first token, tokens) of every document that has tokens, in order."""
    if trace.num_tokens:
        starts = np.flatnonzero(np.r_[True, np.diff(trace.doc) != 0])
        sizes = np.diff(np.r_[starts, trace.num_tokens])
        yield from zip(trace.doc[starts].tolist(), starts.tolist(), sizes.tolist(), strict=True)
