"""Traces from given assignments: what the measures' tests hand in when they know the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from moescope.data.base import Labels
from moescope.trace.schema import LayerMeta, LayerTrace, Trace, TraceMeta


def routed_trace(
    expert_TK: np.ndarray,
    num_experts: int,
    *,
    doc: np.ndarray | None = None,
    labels: Mapping[str, Labels] | None = None,
    hidden_nd: np.ndarray | None = None,
    **fields: Any,
) -> Trace:
    """One layer (id 3) whose tokens went where `expert_TK` says (-1: empty); `fields` replace parts of it."""
    experts = np.asarray(expert_TK, dtype=np.int32)
    if experts.ndim == 1:
        experts = experts[:, None]
    num_tokens = experts.shape[0]
    layer = LayerTrace(
        meta=LayerMeta(
            layer=3, path="blocks.3.moe.router", router="made_up", num_experts=num_experts, k=experts.shape[1]
        ),
        expert_TK=experts,
        gate_TK=(experts >= 0).astype(np.float32),
        sent_TK=experts >= 0,
        entropy_T=np.full(num_tokens, np.nan, np.float32),
        margin_T=np.full(num_tokens, np.nan, np.float32),
        mean_probs_E=np.full(num_experts, 1 / num_experts),
        logits_TE=None,
        hidden_nd=hidden_nd,
    )
    layer = replace(layer, **fields)
    return Trace(
        meta=TraceMeta(model={"name": "made up"}, data={"synthetic": True}, kind="text", layers=(layer.meta,)),
        doc=np.zeros(num_tokens, np.int32) if doc is None else np.asarray(doc, np.int32),
        position=np.arange(num_tokens, dtype=np.int32),
        labels={} if labels is None else labels,
        layers={3: layer},
        sample=None if hidden_nd is None else np.arange(num_tokens, dtype=np.int32),
    )


def labelled(codes: np.ndarray, scope: str = "token") -> Labels:
    """Labels named a, b, c, ... by code."""
    values = np.asarray(codes, dtype=np.int16)
    names = tuple(chr(ord("a") + i) if i < 26 else f"v{i}" for i in range(int(values.max(initial=0)) + 1))
    return Labels(values, names, scope)  # type: ignore[arg-type]
