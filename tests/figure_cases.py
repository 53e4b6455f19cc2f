"""Traces with every irregularity that a figure must survive, and a figure's JSON read back as a browser reads it."""

from __future__ import annotations

import base64
import dataclasses
import json
from typing import Any

import numpy as np

from moescope.data.base import Labels
from moescope.events import Event
from moescope.trace.schema import LayerTrace, Trace
from synthetic import make_trace

HOSTILE = ("<b>bold</b>", "&lt;", "<script>alert(1)</script>", "%{x}", "$a$", '"quoted"', "é", "\t", "  ", "<br>")


def with_layers(trace: Trace, **changes: Any) -> Trace:
    """The trace with the same fields replaced in every layer; a callable is given the layer."""
    made: dict[int, LayerTrace] = {}
    for layer, traced in trace.layers.items():
        fields = {name: value(traced) if callable(value) else value for name, value in changes.items()}
        made[layer] = dataclasses.replace(traced, **fields)
    return dataclasses.replace(trace, layers=made, meta=_metas(trace, made))


def _metas(trace: Trace, layers: dict[int, LayerTrace]) -> Any:
    return dataclasses.replace(trace.meta, layers=tuple(layers[meta.layer].meta for meta in trace.meta.layers))


def variable_k(seed: int = 0) -> Trace:
    """Between 0 and 4 experts a token, some of them dropped; half of the tokens unlabelled."""
    trace = make_trace(k=4, seed=seed)
    rng = np.random.default_rng(seed)
    wanted = np.arange(4) < rng.integers(0, 5, trace.num_tokens)[:, None]
    sent = wanted & (rng.random(wanted.shape) > 0.1)
    domain = trace.labels["domain"]
    half = Labels(np.where(trace.doc % 2 == 0, domain.codes, -1).astype(np.int16), domain.names, "document")
    trace = dataclasses.replace(trace, labels={**trace.labels, "half": half})
    return with_layers(
        trace,
        expert_TK=lambda traced: np.where(wanted, traced.expert_TK, -1).astype(np.int32),
        gate_TK=lambda traced: np.where(sent, traced.gate_TK, 0).astype(np.float32),
        sent_TK=sent,
        logits_TE=None,
        meta=lambda traced: dataclasses.replace(traced.meta, k=None),
    )


def hostile_text() -> Trace:
    """A text whose tokens, documents and labels are markup."""
    trace = make_trace(tokens=300, docs=6)
    rng = np.random.default_rng(1)
    which = rng.integers(0, len(HOSTILE), trace.num_tokens)
    pieces = [HOSTILE[i].encode() for i in which]
    ends = np.cumsum([len(p) for p in pieces]).astype(np.int32)
    names = ("<i>py</i>", "c & d", "<script>", "%{y}")
    meta = dataclasses.replace(trace.meta, data={"documents": [f"<u>{i}</u>" for i in range(6)]})
    return dataclasses.replace(
        trace, meta=meta, text=b"".join(pieces), start=np.r_[0, ends[:-1]].astype(np.int32), end=ends,
        token_id=which.astype(np.int32), labels={"<kind>": Labels(trace.labels["domain"].codes, names, "document")},
    )  # fmt: skip


def patches() -> Trace:
    """Images of 4 x 4 patches: no text, no token ids."""
    trace = make_trace(tokens=320, docs=20)
    doc = np.repeat(np.arange(20, dtype=np.int32), 16)
    place = np.tile(np.arange(16, dtype=np.int16), 20)
    labels = {
        "class": Labels((doc % 4).astype(np.int16), tuple("0123"), "document"),
        "position": Labels(place, tuple(f"{i // 4},{i % 4}" for i in range(16)), "token"),
    }
    return dataclasses.replace(
        trace, meta=dataclasses.replace(trace.meta, kind="patches", data={}), doc=doc, position=place.astype(np.int32),
        labels=labels, token_id=None, start=None, end=None, text=b"", images=np.zeros((20, 8, 8), np.uint8),
    )  # fmt: skip


def gap_in_experts() -> Trace:
    """Experts 1 and 5 of eight slots are dead: six alive, ids with gaps."""
    alive = np.array([0, 2, 3, 4, 6, 7])

    def renumber(traced: LayerTrace) -> np.ndarray:
        return alive[traced.expert_TK].astype(np.int32)

    def spread(traced: LayerTrace) -> np.ndarray:
        probs = np.zeros(8)
        probs[alive] = traced.mean_probs_E
        return probs

    return with_layers(make_trace(experts=6), expert_TK=renumber, mean_probs_E=spread, logits_TE=None)


def uneven_layers() -> Trace:
    """Layer 0 has 4 experts, layer 3 has 8."""
    small, large = make_trace(experts=4, layers=1), make_trace(experts=8, layers=4)
    layers = {0: small.layers[0], 3: large.layers[3]}
    meta = dataclasses.replace(large.meta, layers=(layers[0].meta, layers[3].meta))
    return dataclasses.replace(large, layers=layers, meta=meta)


def big() -> Trace:
    return make_trace(tokens=3000, sample=400, experts=64, k=8, layers=16, docs=40)


CASES = {
    "plain": make_trace,
    "variable_k": variable_k,
    "hostile_text": hostile_text,
    "patches": patches,
    "gap_in_experts": gap_in_experts,
    "uneven_layers": uneven_layers,
    "big": big,
    "no_labels": lambda: dataclasses.replace(make_trace(), labels={}),
}


def run_events(steps: int = 60, experts: int = 4) -> list[Event]:
    """A run's log: a falling loss, two objectives, load of two layers every fifth step, three evaluations."""
    rng = np.random.default_rng(0)
    log = [Event(run="r", step=0, kind="run_started")]
    for step in range(1, steps + 1):
        values = {"load_balance": 0.01 + 0.001 * rng.random(), "router_z": 0.002}
        log.append(
            Event(run="r", step=step, kind="train", payload={"loss": 4 / step + rng.random(), "objectives": values})
        )
        if step % 5 == 0:
            loads = [{"layer": layer, "load": rng.dirichlet(np.ones(experts)).tolist()} for layer in (1, 3)]
            log.append(Event(run="r", step=step, kind="load", payload={"layers": loads}))
        if step % 20 == 0:
            log.append(Event(run="r", step=step, kind="eval", payload={"loss": 4 / step + 0.5, "tokens": 100}))
    return log


def browser(figure: Any) -> dict[str, Any]:
    """The figure's JSON as a strict parser and plotly.js read it, with every typed array decoded."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    decoded: dict[str, Any] = _decode(json.loads(figure.to_json(), parse_constant=refuse))
    return decoded


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "bdata" in value:
        array = np.frombuffer(base64.b64decode(value["bdata"]), np.dtype(value["dtype"]))
        return array.reshape([int(n) for n in value["shape"].split(",")]) if "shape" in value else array
    return {key: _decode(item) for key, item in value.items()}


ROLES = {
    "tokens": ("group", "experts"),
    "cells": ("x", "y"),
    "label_cells": ("x", "y", "label"),
    "bars": ("x",),
    "curve": (),
    "step_cells": ("y",),
    "blank": (),
    "marks": (),
    "flow": ("experts",),
}
META = {"moescope", "name", "layer", "title", "caption", "shown", "total", "note"}


def check(name: str, figure: Any) -> None:
    """What docs/contracts.md says of every figure."""
    seen = browser(figure)
    layout, meta = seen["layout"], seen["layout"]["meta"]
    assert set(meta) - {"grow", "again", "options"} == META and meta["moescope"] == 1 and meta["name"] == name
    assert meta["title"] and meta["caption"].endswith(".") and meta["shown"] <= meta["total"]
    assert (meta["note"] is None) or meta["shown"] < meta["total"] or "values" in meta["note"]
    assert layout["paper_bgcolor"] == layout["plot_bgcolor"] == "rgba(0,0,0,0)"
    assert "title" not in layout and "font" not in layout and "colorway" not in layout["template"]["layout"]
    for data in seen["data"]:
        role = data["meta"]["role"]
        assert role in ROLES and all(key in data["meta"] for key in ROLES[role])
