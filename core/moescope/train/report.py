"""Payloads of the events that a run yields, from what really happened."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

import torch

from moescope import ranks
from moescope.adapters.ours import layers_of
from moescope.config import dump
from moescope.model import Transformer, active_params, num_params
from moescope.objectives.base import LayerRecord
from moescope.ranks import summed
from moescope.train.config import RunConfig
from moescope.train.prepare import Prepared


@torch.no_grad()
def load_payload(records: Sequence[LayerRecord]) -> dict[str, Any]:
    """Payload of a `load` event: shares of wanted assignments, before drops, and the ids of alive experts; one transfer
    from the device.

    A dead slot's load is 0; maxvio is the largest load times the number of alive experts, minus 1; effective experts
    are exp of the mean entropy of the router's distribution (fewer is sharper, not more specialised). Where outputs
    were kept for an objective, `output_norm` is their mean length: some objectives fall when outputs merely shrink.
    """
    layers, rows = [], []
    for record in records:
        routing = record.routing
        wanted_N = routing.wanted_TK.flatten().to(torch.int64)
        count_E = torch.zeros(routing.num_experts, dtype=torch.int64, device=wanted_N.device)
        count_E.scatter_add_(0, routing.expert_TK.flatten(), wanted_N)
        sums = summed(torch.cat([count_E, torch.stack([routing.sent_TK.sum(), routing.valid_T.sum()])]))
        entropy = summed(torch.special.entr(routing.probs_TE).sum(dim=-1).where(routing.valid_T, 0.0).sum())
        rows.append(torch.cat([sums.double(), record.alive_E.double(), entropy[None].double()]))
        if record.output_TKd is not None:
            total = summed((record.output_TKd.float().norm(dim=-1) * routing.sent_TK).sum())
            rows[-1] = torch.cat([rows[-1], total.double()[None]])
    flat = iter(torch.cat(rows).tolist() if rows else ())
    for record, row in zip(records, rows, strict=True):
        values = list(islice(flat, len(row)))
        length = values.pop() if record.output_TKd is not None else None
        entropy_sum = values.pop()
        num = record.routing.num_experts
        *counts, sent, tokens = map(int, values[: num + 2])
        alive = [expert for expert, lives in enumerate(values[num + 2 :]) if lives]
        wanted = sum(counts)
        load = [count / max(wanted, 1) for count in counts]
        told = {
            "layer": record.layer,
            "load": load,
            "alive": alive,
            "maxvio": max(load) * len(alive) - 1 if wanted else 0.0,
            "dropped": (wanted - sent) / max(wanted, 1),
            "tokens": tokens,
            "experts_per_token": wanted / max(tokens, 1),
            "effective_experts": math.exp(entropy_sum / max(tokens, 1)),
        }
        layers.append(told if length is None else told | {"output_norm": length / max(sent, 1)})
    return {"layers": layers}


def started_payload(
    config: RunConfig,
    model: Transformer,
    data: Prepared,
    device: torch.device,
    precision: str,
    forked: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Payload of `run_started`; `config.model` has the sizes that follow from the data. `forked`: whence a fork."""
    layers = [asdict(layer) for layer in layers_of(model)]
    payload = {
        "config": {**dump(config), "model": dump(model.config)},
        "params": num_params(model),
        "active_params": active_params(model) if all(layer["k"] for layer in layers) else None,
        "layers": layers,
        "data": {
            "kind": data.train.kind,
            "tokens": data.train.num_tokens,
            "documents": data.train.num_docs,
            "held_out_tokens": data.held_out.num_tokens,
            "held_out_documents": data.held_out.num_docs,
            "synthetic": bool(data.train.source.get("synthetic", False)),
            "fingerprint": data.fingerprint,
            "floor": data.train.source.get("floor"),
            "arrivals": [asdict(arrival) for arrival in data.arrivals],
        },
        "device": str(device),
        "precision": precision,
        "threads": torch.get_num_threads(),
        "processes": ranks.world(),
    }
    return payload if forked is None else payload | {"forked": dict(forked)}
