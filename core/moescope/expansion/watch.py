"""What detectors are shown: statistics of every layer after the backward pass, in one transfer from the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from moescope import ranks
from moescope.expansion.base import Scope, TokenGradients, View
from moescope.model.layers import MoELayer
from moescope.objectives.base import LayerRecord


def views(
    step: int,
    layers: Mapping[int, tuple[MoELayer, Scope]],
    records: Mapping[int, LayerRecord],
    loss: Tensor,
    gradients: Mapping[int, Callable[..., TokenGradients]],
) -> dict[int, View]:
    """The view of each layer by its index. Waits for the device once; every rank gets the same."""
    rows = [_statistics(layer, records[index], scope) for index, (layer, scope) in layers.items()]
    packed = torch.cat([*rows, loss.detach().double().reshape(1)])
    *parts, last = torch.split(ranks.agreed(packed).cpu(), [len(row) for row in rows] + [1])
    made = {}
    for (index, (layer, scope)), part in zip(layers.items(), parts, strict=True):
        record = records[index]
        num_slots = len(record.alive_E)
        square_E, product_E, weight_E, sent_E, alive_E = part[:-2].view(5, num_slots)
        lengths_E = (square_E * weight_E).sqrt()
        tokens, unreached = int(part[-2]), int(part[-1])
        made[index] = View(
            layer=index,
            step=step,
            alive_E=alive_E > 0,
            norm_E=square_E.sqrt(),
            cos_E=(product_E / lengths_E.where(lengths_E > 0, 1.0)).where(lengths_E > 0, 0.0),
            size=sum(weight[0].numel() for weight in _weights(layer, scope)),
            sent_E=sent_E.long(),
            tokens=tokens,
            unreached=unreached,
            loss=float(last),
            unreached_mean=partial(_unreached_mean, record, unreached),
            nearest=partial(_nearest, layer),
            gradients=gradients.get(index),
        )
    return made


def _weights(layer: MoELayer, scope: Scope) -> list[Tensor]:
    names = layer.bank.per_expert if scope == "all" else (layer.bank.first,)
    return [layer.bank.get_parameter(name) for name in names]


@torch.no_grad()
def _statistics(layer: MoELayer, record: LayerRecord, scope: Scope) -> Tensor:
    """float64 [5 E + 2]: squared norm of the gradient, its product with the weights, their squared norm, tokens sent,
    alive; valid tokens and unreached ones. Counts are over all ranks, gradients are averaged already."""
    routing, alive_E = record.routing, record.alive_E
    sums_3E = torch.zeros(3, len(alive_E), dtype=torch.float64, device=alive_E.device)
    for weight in _weights(layer, scope):
        if weight.grad is None:
            continue
        flat_Ex, grad_Ex = weight.detach().flatten(1).float(), weight.grad.flatten(1).float()
        for row, (a_Ex, b_Ex) in enumerate(((grad_Ex, grad_Ex), (grad_Ex, flat_Ex), (flat_Ex, flat_Ex))):
            sums_3E[row] += torch.bmm(a_Ex[:, None], b_Ex[:, :, None])[:, 0, 0].double()
    sent_E = torch.zeros_like(alive_E, dtype=torch.int64)
    sent_E.scatter_add_(0, routing.expert_TK.flatten(), routing.sent_TK.flatten().long())
    tokens_2 = torch.stack([routing.valid_T.sum(), _unreached(record).sum()])
    counts = ranks.summed(torch.cat([sent_E, tokens_2]))
    sent_E, tokens_2 = counts[:-2], counts[-2:]
    return torch.cat([(sums_3E * alive_E).flatten(), sent_E.double(), alive_E.double(), tokens_2.double()])


def _unreached(record: LayerRecord) -> Tensor:
    """bool [T]: valid tokens for which no expert was wanted."""
    return record.routing.valid_T & ~record.routing.wanted_TK.any(dim=1)


@torch.no_grad()
def _unreached_mean(record: LayerRecord, unreached: int) -> Tensor | None:
    if not unreached:
        return None
    rows_Td = record.input_Td.float().where(_unreached(record)[:, None], 0.0)
    mean_d: Tensor = ranks.agreed(ranks.summed(rows_Td.sum(dim=0))) / unreached
    return mean_d


@torch.no_grad()
def _nearest(layer: MoELayer, token_d: Tensor) -> int | None:
    rows_Er = layer.router.rows_Ed
    if rows_Er is None:
        return None
    towards_r = layer.router.towards(token_d.to(rows_Er.device).float())
    close_E = torch.nn.functional.cosine_similarity(rows_Er.float(), towards_r[None], dim=1)
    return int(ranks.agreed(close_E.masked_fill(~layer.alive_E, -torch.inf).argmax()))
