"""One expert: how much it is used, on which tokens, in what company."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

from moescope.errors import InputError
from moescope.figures.counts import MIN_COUNT, document_names, get_layer, label_counts, layer_load, lift
from moescope.figures.wording import Words
from moescope.metrics.view import alive_experts
from moescope.trace.schema import LayerTrace, Trace

TOP_TOKENS, CONTEXTS, PARTNERS = 20, 8, 8


def expert_card(trace: Trace, layer: int, expert: int) -> dict[str, Any]:
    """What one expert of one layer does, each number with its count and its base rate.

    load, load_null, load_null_std: share of assignments; even routing's mean 1 / E and its standard deviation.
    assignments, dropped, n: assignments of the expert, how many were dropped, tokens of the trace.
    entropy (nats), mean_gate: means over the expert's tokens; None where it has none.
    top_tokens: types seen at least `MIN_COUNT` times, by lift: `share` of the `of` occurrences that came here,
      `null` the share of all tokens that did, `lift` log2 of their ratio with one pseudo-count. Those above
      chance come first, `significant`: binomial, Benjamini and Hochberg at 5 % over those types.
    contexts: tokens with the largest gates; ties go to the sharper distribution, then to the earlier token.
    labels: per value, `share` of the expert's labelled assignments, `base` share of all, `lift` in bits or None.
    partners: P(other expert | this one) within a token's choice; `null` draws the other slots by load.

    Raises `InputError` for an unknown layer or expert.
    """
    traced = get_layer(trace, layer)
    load = layer_load(traced)
    if expert not in load.expert_E:
        raise InputError(f"Expert {expert} is not one of layer {layer}'s {load.num_experts} experts.")
    place = int(np.flatnonzero(load.expert_E == expert)[0])
    token_A, slot_A = np.nonzero(traced.expert_TK == expert)
    gate_A = traced.gate_TK[token_A, slot_A].astype(np.float64)
    return {
        "layer": layer,
        "expert": expert,
        "load": float(load.load_E[place]),
        "load_null": 1 / load.num_experts,
        "load_null_std": load.std,
        "assignments": int(load.count_E[place]),
        "dropped": int(load.dropped_E[place]),
        "n": trace.num_tokens,
        "entropy": float(traced.entropy_T[token_A].mean(dtype=np.float64)) if token_A.size else None,
        "mean_gate": float(gate_A.mean()) if token_A.size else None,
        "top_tokens": _top_tokens(trace, token_A, gate_A),
        "contexts": _contexts(trace, traced, token_A, gate_A),
        "labels": {name: _profile(trace, traced, name, place) for name in trace.labels},
        "partners": _partners(traced, load.load_E, place, token_A),
    }


def _token_types(trace: Trace) -> np.ndarray | None:
    """int64 [T]: what counts as the same token: its id in the vocabulary, the place of a patch; vectors have none."""
    if trace.token_id is not None:
        return trace.token_id.astype(np.int64)
    return trace.position.astype(np.int64) if trace.meta.kind == "patches" else None


def _top_tokens(trace: Trace, token_A: np.ndarray, gate_A: np.ndarray) -> list[dict[str, Any]]:
    kind_T = _token_types(trace)
    if kind_T is None or not token_A.size:
        return []
    kinds, place_T, seen = np.unique(kind_T, return_inverse=True, return_counts=True)
    count = np.bincount(place_T[token_A], minlength=len(kinds))
    base = token_A.size / trace.num_tokens
    bits = np.log2((count + base) / (seen + 1) / base)
    strongest: dict[int, int] = {}
    for at in np.lexsort((token_A, -gate_A)).tolist():
        strongest.setdefault(int(place_T[token_A[at]]), int(token_A[at]))
    words = Words(trace)
    clear = _clear(count, seen, base)
    ranked = np.lexsort((kinds, -count, -bits, ~clear)).tolist()
    order = [i for i in ranked if seen[i] >= MIN_COUNT and count[i] and bits[i] > 0]
    return [
        {
            "text": words.name(strongest[i]),
            "count": int(count[i]),
            "of": int(seen[i]),
            "share": float(count[i] / seen[i]),
            "null": base,
            "lift": float(bits[i]),
            "significant": bool(clear[i]),
            "token": strongest[i],
        }
        for i in order[:TOP_TOKENS]
    ]


def _clear(count_N: np.ndarray, seen_N: np.ndarray, base: float) -> np.ndarray:
    """bool [N]: types that come here more often than chance: one-sided binomial, false discovery rate 5 %."""
    clear = np.zeros(count_N.size, bool)
    tested = np.flatnonzero(seen_N >= MIN_COUNT)
    if tested.size:
        p = stats.binom.sf(count_N[tested] - 1, seen_N[tested], base)
        clear[tested] = stats.false_discovery_control(p) <= 0.05
    return clear


def _contexts(trace: Trace, traced: LayerTrace, token_A: np.ndarray, gate_A: np.ndarray) -> list[dict[str, Any]]:
    names, words, found, said = document_names(trace), Words(trace), [], set()
    for at in np.lexsort((token_A, traced.entropy_T[token_A], -gate_A)).tolist():
        token = int(token_A[at])
        before, after = words.around(token)
        text = words.name(token)
        if trace.meta.kind != "text":
            before = f"{names[int(trace.doc[token])]}: "
        if (before, text, after) in said:
            continue
        said.add((before, text, after))
        found.append({"token": token, "before": before, "text": text, "after": after, "gate": float(gate_A[at])})
        if len(found) == CONTEXTS:
            break
    return found


def _profile(trace: Trace, traced: LayerTrace, label: str, place: int) -> list[dict[str, Any]]:
    names = trace.labels[label].names
    count_VE = label_counts(traced, trace.labels[label])
    bits = lift(count_VE)[0][:, place]
    count_V, total_V = count_VE[:, place], count_VE.sum(1)
    mine, everything = max(int(count_V.sum()), 1), max(int(total_V.sum()), 1)
    return [
        {
            "value": names[v],
            "share": float(count_V[v] / mine),
            "base": float(total_V[v] / everything),
            "lift": float(bits[v]) if np.isfinite(bits[v]) else None,
            "count": int(count_V[v]),
        }
        for v in np.argsort(-count_V, kind="stable").tolist()
        if total_V[v]
    ]


def _partners(traced: LayerTrace, load_E: np.ndarray, place: int, token_A: np.ndarray) -> list[dict[str, Any]]:
    expert_E, expert = alive_experts(traced), int(alive_experts(traced)[place])
    if not token_A.size or traced.expert_TK.shape[1] < 2:
        return []
    mine_AK = traced.expert_TK[token_A]
    others = mine_AK[(mine_AK >= 0) & (mine_AK != expert)]
    count_E = np.bincount(others, minlength=int(expert_E.max()) + 1)[expert_E]
    slots = others.size / token_A.size
    null_E = np.minimum(slots * load_E / max(1 - load_E[place], 1e-12), 1.0)
    order = [e for e in np.lexsort((expert_E, -count_E)).tolist() if e != place and count_E[e]]
    return [
        {
            "expert": int(expert_E[e]),
            "p": float(count_E[e] / token_A.size),
            "null": float(null_E[e]),
            "count": int(count_E[e]),
        }
        for e in order[:PARTNERS]
    ]
