"""Sets of tokens: where a selection goes, against where all tokens go; the tokens that went to an expert."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from moescope.errors import InputError
from moescope.figures.counts import MIN_COUNT, get_layer, layer_load
from moescope.trace.schema import LayerTrace, Trace


def selection_card(trace: Trace, tokens: Sequence[int]) -> dict[str, Any]:
    """What the tokens of a selection have in common, each share beside the base rate over the whole trace.

    layers: per layer and alive expert, `share` of the selection's assignments and `base`, of all assignments.
    labels: per value, `share` of the selection's labelled tokens, `base` of all labelled tokens, `count` in the
      selection, and `lift`, log2 of their ratio with one pseudo-count; None where the count, seen and expected, is
      below `MIN_COUNT`. A token that is named twice counts once.

    Raises `InputError` for an empty selection or a token that the trace does not have.
    """
    chosen = np.unique(np.asarray(tokens, np.int64))
    if not chosen.size:
        raise InputError("The selection holds no token.")
    if chosen[0] < 0 or chosen[-1] >= trace.num_tokens:
        worst = int(chosen[0] if chosen[0] < 0 else chosen[-1])
        raise InputError(f"Token {worst} is not in this trace; it has tokens 0 to {trace.num_tokens - 1}.")
    return {
        "n": int(chosen.size),
        "total": trace.num_tokens,
        "layers": [{"layer": layer, "experts": _shares(trace.layers[layer], chosen)} for layer in trace.layer_ids],
        "labels": {
            name: _profile(labels.codes, labels.codes[chosen], labels.names) for name, labels in trace.labels.items()
        },
    }


def expert_tokens(trace: Trace, layer: int, expert: int) -> dict[str, list[int]]:
    """The sampled tokens (those that a map can show) that want an expert, as their `first` choice or as an `other`.

    Raises `InputError` for an unknown layer or expert.
    """
    traced = get_layer(trace, layer)
    if expert not in layer_load(traced).expert_E:
        raise InputError(f"Expert {expert} is not one of layer {layer}'s experts.")
    sample = np.zeros(0, np.int32) if trace.sample is None else trace.sample
    wanted_nK = (traced.expert_TK[sample] == expert) & traced.wanted_TK[sample]
    first_n = traced.top1_T[sample] == expert
    return {"first": sample[first_n].tolist(), "other": sample[wanted_nK.any(1) & ~first_n].tolist()}


def _shares(traced: LayerTrace, chosen: np.ndarray) -> list[dict[str, Any]]:
    load = layer_load(traced)
    wanted = traced.expert_TK[chosen][traced.wanted_TK[chosen]]
    count_E = np.bincount(wanted, minlength=int(load.expert_E.max(initial=-1)) + 1)[load.expert_E]
    share_E = count_E / max(int(count_E.sum()), 1)
    return [
        {"expert": int(expert), "share": float(share), "base": float(base)}
        for expert, share, base in zip(load.expert_E, share_E, load.load_E, strict=True)
    ]


def _profile(code_T: np.ndarray, mine: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    total_V = np.bincount(code_T[code_T >= 0], minlength=len(names))
    count_V = np.bincount(mine[mine >= 0], minlength=len(names))
    base_V = total_V / max(int(total_V.sum()), 1)
    labelled = int(count_V.sum())
    enough_V = (np.maximum(count_V, labelled * base_V) >= MIN_COUNT) & (total_V > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        lift_V = np.log2((count_V + base_V) / (labelled + 1) / base_V)
    return [
        {
            "value": names[v],
            "share": float(count_V[v] / labelled) if labelled else None,
            "base": float(base_V[v]),
            "lift": float(lift_V[v]) if enough_V[v] else None,
            "count": int(count_V[v]),
        }
        for v in np.argsort(-count_V, kind="stable").tolist()
        if total_V[v]
    ]
