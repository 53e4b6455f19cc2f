"""Two or three sentences worth a look, each computed from the trace and each with its n; and where to look first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from moescope.data.base import Labels
from moescope.figures.cards.association import Cell, discoveries, label_cells, units
from moescope.figures.counts import layer_load
from moescope.figures.wording import Words, number, percent, ratio, shown_token
from moescope.metrics.base import Measurement
from moescope.trace.schema import Trace

MOST, EXAMPLES = 3, 8
_TOKEN = ""
"""Stands for 'the same token' among the labels' names, which are never empty."""
_TOKEN_TYPES = 200
_UNEVEN, _DEAD = 2.0, 0.01


def defaults(trace: Trace, measurements: Sequence[Measurement] = ()) -> tuple[int, str | None]:
    """The layer and label with the highest mutual information above its null, those with p <= 0.05 before the others.

    It is counted per token of the trace, unlabelled ones included: a label of few tokens tells little about a text.
    Without a measurement, the first layer and the first label; no label where the trace has none.
    """
    best, layer, label = (False, -np.inf), trace.layer_ids[0], next(iter(trace.labels), None)
    for item in measurements:
        if item.metric != "mutual_information" or item.label not in trace.labels or item.value is None:
            continue
        told = (item.value - (item.null or 0.0)) * item.n / max(trace.num_tokens, 1)
        above = (item.p is not None and item.p <= 0.05, told)
        if item.layer in trace.layers and above > best:
            best, layer, label = above, item.layer, item.label
    return layer, label


def findings(trace: Trace, measurements: Sequence[Measurement] = ()) -> list[dict[str, Any]]:
    """At most `MOST` findings, in the shape of docs/contracts.md; `association` says what passes.

    `value` and `null` are what the sentence sets side by side, `q` the adjusted p. Where nothing passes, one entry
    says so.
    """
    labels = dict(trace.labels)
    types = _token_types(trace)
    if types is not None:
        labels[_TOKEN] = types
    found: list[tuple[Cell, float]] = []
    total = 0
    for name, values in labels.items():
        cells, tested = label_cells(trace, name, values)
        found, total = found + discoveries(cells, tested), total + tested
    said = [_sentence(trace, labels, cell, adjusted) for cell, adjusted in _varied(found)]
    uneven = _load_finding(trace, units(trace))
    if uneven is not None:
        said = [*said[: MOST - 1], uneven]
    return said or [_nothing(trace, total, measurements)]


def _token_types(trace: Trace) -> Labels | None:
    """The most frequent tokens of a text as a label, so that an expert of one word is found like one of a domain."""
    if trace.token_id is None:
        return None
    kinds, place_T, seen = np.unique(trace.token_id, return_inverse=True, return_counts=True)
    common = np.argsort(-seen, kind="stable")[:_TOKEN_TYPES]
    code = np.full(len(kinds), len(common), np.int64)
    code[common] = np.arange(len(common))
    example = {int(place): i for i, place in reversed(list(enumerate(place_T.tolist())))}
    words = Words(trace)
    names = [words.name(example[int(i)]) for i in common]
    return Labels(codes=code[place_T], names=(*names, "any other"), scope="token")


def _varied(found: list[tuple[Cell, float]]) -> list[tuple[Cell, float]]:
    """Of every label its most surprising cell, then the next, each of another expert and another value.

    Of single tokens there is at most one: that experts know words is no news.
    """
    chosen: list[tuple[Cell, float]] = []
    waiting = sorted(found, key=lambda item: item[0].order)
    while waiting and len(chosen) < MOST:
        said = {cell.label: sum(old.label == cell.label for old, _ in chosen) for cell, _ in waiting}
        fewest = min(said.values())
        cell, adjusted = next(item for item in waiting if said[item[0].label] == fewest)
        chosen.append((cell, adjusted))
        waiting = [item for item in waiting if _another(item[0], cell)]
    return chosen


def _another(cell: Cell, said: Cell) -> bool:
    same_expert = (cell.layer, cell.expert) == (said.layer, said.expert)
    same_value = (cell.label, cell.value) == (said.label, said.value)
    return not same_expert and not same_value and not (cell.label == said.label == _TOKEN)


def _sentence(trace: Trace, labels: dict[str, Labels], cell: Cell, adjusted: float) -> dict[str, Any]:
    label, name = labels[cell.label], labels[cell.label].names[cell.value]
    labelled = int((label.codes >= 0).sum())
    noun = "tokens" if trace.meta.kind == "text" else trace.meta.kind
    mine = f"“{shown_token(name)}” tokens" if cell.label == _TOKEN else f"{noun} with {cell.label} “{name}”"
    everyone = "all" if labelled == trace.num_tokens else f"all {noun} that have a {cell.label}"
    whole = "images" if trace.meta.kind == "patches" else "documents"
    unit = whole if np.unique(trace.doc).size >= 2 else "blocks of 64 tokens"
    traced = trace.layers[cell.layer]
    token, slot = np.nonzero((traced.expert_TK == cell.expert) & (label.codes == cell.value)[:, None])
    strongest = np.lexsort((token, -traced.gate_TK[token, slot]))[:EXAMPLES]
    return {
        "text": (
            f"In layer {cell.layer}, expert {cell.expert} takes {percent(cell.share)} of the {mine}, against "
            f"{percent(cell.base)} of {everyone} (n = {number(cell.tokens)} {noun} in {number(cell.units)} {unit})."
        ),
        "layer": cell.layer,
        "expert": cell.expert,
        "label": cell.label or None,
        "label_value": None if cell.label == _TOKEN else name,
        "value": cell.share,
        "null": cell.base,
        "n": cell.tokens,
        "q": adjusted,
        "tokens": token[strongest].tolist(),
    }


def _load_finding(trace: Trace, unit_T: np.ndarray) -> dict[str, Any] | None:
    """The busiest expert if it takes at least twice its share in both halves of the units; else experts left dead."""
    busiest, dead = None, None
    for layer in trace.layer_ids:
        load = layer_load(trace.layers[layer])
        if load.num_experts < 2 or load.assignments < 50 * load.num_experts:
            continue
        even = load.load_E * load.num_experts
        top = int(even.argmax())
        if even[top] >= _UNEVEN and _halves(trace, layer, int(load.expert_E[top]), unit_T, load.num_experts):
            busiest = max(busiest or (0.0, 0, 0), (float(even[top]), -layer, top))
        idle = np.flatnonzero(even < _DEAD)
        if idle.size and (dead is None or idle.size > dead[1].size):
            dead = (layer, idle)
    if busiest is not None:
        return _busy(trace, -busiest[1], busiest[2])
    return None if dead is None else _idle(trace, *dead)


def _halves(trace: Trace, layer: int, expert: int, unit_T: np.ndarray, num_experts: int) -> bool:
    traced = trace.layers[layer]
    for half in (0, 1):
        rows = traced.expert_TK[unit_T % 2 == half]
        wanted = int((rows >= 0).sum())
        if not wanted or (rows == expert).sum() / wanted * num_experts < _UNEVEN**0.5:
            return False
    return True


def _busy(trace: Trace, layer: int, place: int) -> dict[str, Any]:
    load, traced = layer_load(trace.layers[layer]), trace.layers[layer]
    expert, even = int(load.expert_E[place]), 1 / load.num_experts
    token, slot = np.nonzero(traced.expert_TK == expert)
    strongest = np.lexsort((token, -traced.gate_TK[token, slot]))[:EXAMPLES]
    text = (
        f"In layer {layer}, expert {expert} takes {percent(load.load_E[place])} of all assignments, "
        f"{ratio(load.load_E[place] / even)} an even share (even routing: {100 * even:.3g} ± {200 * load.std:.1g} %, "
        f"two standard deviations; n = {number(load.tokens)} tokens)."
    )
    return _load_entry(layer, expert, text, float(load.load_E[place]), even, load.tokens, token[strongest].tolist())


def _idle(trace: Trace, layer: int, idle: np.ndarray) -> dict[str, Any]:
    load = layer_load(trace.layers[layer])
    names = ", ".join(str(int(load.expert_E[i])) for i in idle[:6]) + (", …" if idle.size > 6 else "")
    text = (
        f"In layer {layer}, {idle.size} of {load.num_experts} experts ({names}) get almost nothing: under 1 % of an "
        f"even share each (n = {number(load.tokens)} tokens)."
    )
    value = float(load.load_E[idle].sum())
    return _load_entry(layer, int(load.expert_E[idle[0]]), text, value, idle.size / load.num_experts, load.tokens, [])


def _load_entry(
    layer: int, expert: int | None, text: str, value: float | None, null: float | None, n: int, tokens: list[int]
) -> dict[str, Any]:
    plain: dict[str, Any] = {"text": text, "layer": layer, "expert": expert, "label": None, "label_value": None}
    return plain | {"value": value, "null": null, "n": n, "q": None, "tokens": tokens}


def _nothing(trace: Trace, tested: int, measurements: Sequence[Measurement]) -> dict[str, Any]:
    layer, _ = defaults(trace, measurements)
    why = (
        f"none of {number(tested)} pairs of an expert and a label's value passes effect, significance and replication"
        if tested
        else "too few tokens carry labels to compare experts"
    )
    text = f"Nothing stands out: {why} (n = {number(trace.num_tokens)} tokens)."
    return _load_entry(layer, None, text, None, None, trace.num_tokens, [])
