"""Counting who went where: the few tables that figures and cards share.

An assignment is one wanted (token, expert) pair: what the router decided, before a capacity limit dropped any. Load is
the share of assignments. The null of a load is even routing: every token draws as many distinct experts as it did at
random, independently of other tokens, so that count_e has variance sum_i (k_i / E)(1 - k_i / E).

Shapes: T tokens, E alive experts (columns follow `alive_experts`, ids may have gaps), V values of a label.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from moescope.data.base import Labels
from moescope.errors import InputError
from moescope.metrics.view import alive_experts
from moescope.trace.schema import LayerTrace, Trace

MIN_COUNT = 5
"""A cell with fewer assignments, seen and expected, says 'not enough data'."""


@dataclass(frozen=True)
class Load:
    """Assignments per alive expert of one layer. `std`: of a load under the null, whose mean is 1 / E."""

    expert_E: np.ndarray
    count_E: np.ndarray
    dropped_E: np.ndarray
    load_E: np.ndarray
    std: float
    tokens: int

    @property
    def num_experts(self) -> int:
        return int(self.expert_E.size)

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
    expert_E, wanted = alive_experts(traced), traced.wanted_TK
    slots = int(expert_E.max(initial=-1)) + 1
    count = np.bincount(traced.expert_TK[wanted], minlength=slots)[expert_E]
    dropped = np.bincount(traced.expert_TK[wanted & ~traced.sent_TK], minlength=slots)[expert_E]
    chance_T = wanted.sum(1) / max(expert_E.size, 1)
    total = int(count.sum())
    std = math.sqrt(float((chance_T * (1 - chance_T)).sum())) / total if total else 0.0
    return Load(expert_E, count, dropped, count / max(total, 1), std, len(wanted))


def label_counts(traced: LayerTrace, labels: Labels) -> np.ndarray:
    """int64 [V, E]: assignments of the tokens that carry each value; unlabelled tokens are left out."""
    expert_E = alive_experts(traced)
    slots = int(expert_E.max(initial=-1)) + 1
    counted = traced.wanted_TK & (labels.codes >= 0)[:, None]
    rows, _ = np.nonzero(counted)
    flat = labels.codes[rows].astype(np.int64) * slots + traced.expert_TK[counted]
    table: np.ndarray = np.bincount(flat, minlength=len(labels.names) * slots).reshape(-1, slots)[:, expert_E]
    return table


def lift(count_VE: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log2 P(e|y) / P(e) with one pseudo-count spread by the loads.

    Returns (lift_VE in bits, base_E), where `base_E` is P(e) over the counted assignments. Lift is NaN where both the
    seen and the expected number of assignments are below `MIN_COUNT`: not enough data.
    """
    total_V1 = count_VE.sum(1, keepdims=True)
    base_E = count_VE.sum(0) / max(int(count_VE.sum()), 1)
    enough = (np.maximum(count_VE, total_V1 * base_E) >= MIN_COUNT) & (base_E > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.log2((count_VE + base_E) / (total_V1 + 1) / base_E)
    return np.where(enough, value, np.nan), base_E


def confidence(traced: LayerTrace) -> tuple[np.ndarray, str]:
    """float64 [T] and its name: the router's top probability where the trace shows it, else the largest gate.

    Softmax of the kept logits is taken for the router's distribution only if its entropy is the recorded entropy: a
    sigmoid router's is another.
    """
    logits = traced.logits_TE
    if logits is not None and logits.size:
        shifted = logits - logits.max(1, keepdims=True)
        weight = np.exp(shifted, dtype=np.float64)
        norm = weight.sum(1)
        entropy = np.log(norm) - (weight * np.where(np.isfinite(shifted), shifted, 0.0)).sum(1) / norm
        if np.allclose(entropy, traced.entropy_T, atol=2e-3):
            return 1.0 / norm, "top router probability"
    gates = np.where(traced.wanted_TK, traced.gate_TK, 0).max(1, initial=0)
    return gates.astype(np.float64), "largest gate"


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
