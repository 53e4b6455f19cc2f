"""Who was sent where in one training step, added up on the device over its forward passes.

Shapes: T positions of one pass, E expert slots, k or K experts per token, L blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from moescope.objectives.base import LayerRecord
from moescope.ranks import summed


class Tally:
    """Counts of one step. Nothing is read from the device before `payload`.

    slots: block to its number of expert slots, ascending. alive: bool [E] on the CPU, a block's slots with an expert.
    """

    def __init__(self, slots: Mapping[int, int], alive: Callable[[int], Tensor]) -> None:
        self._slots, self._alive = slots, alive
        self._counts: dict[int, Tensor] = {}
        """Block to int64 [E + 2]: wanted assignments per expert, those sent, tokens."""
        self._entropies: dict[int, Tensor] = {}
        """Block to the sum over tokens of the entropy of the router's distribution, in nats."""

    def clear(self) -> None:
        self._counts.clear()
        self._entropies.clear()

    @torch.no_grad()
    def add(self, layer: int, logits_TE: Tensor, index_Tk: Tensor, valid_T: Tensor | None) -> None:
        """One call of a router that sends every token to k experts; `valid_T` None: there is no padding."""
        rows, k = index_Tk.shape
        wide_TE = logits_TE.float()
        log_TE = wide_TE - wide_TE.logsumexp(dim=-1, keepdim=True)  # a fifth of log_softmax's time on a CPU
        entropy_T = -(log_TE.exp() * log_TE).sum(dim=-1)
        if valid_T is None:
            wanted_Tk = torch.ones((rows, k), dtype=torch.int64, device=index_Tk.device)
            self._add(layer, index_Tk, wanted_Tk, wanted_Tk.sum(), index_Tk.new_tensor(rows), entropy_T)
        else:
            valid_T = valid_T.to(index_Tk.device)
            wanted_Tk = valid_T[:, None].expand(rows, k).to(torch.int64)
            self._add(layer, index_Tk, wanted_Tk, wanted_Tk.sum(), valid_T.sum(), entropy_T.where(valid_T, 0.0))

    @torch.no_grad()
    def add_record(self, record: LayerRecord) -> None:
        """One forward pass of a layer of ours."""
        routing = record.routing
        sent = (routing.sent_TK & routing.wanted_TK).sum()
        tokens, wanted_TK = routing.valid_T.sum(), routing.wanted_TK.to(torch.int64)
        entropy_T = torch.special.entr(routing.probs_TE).sum(dim=-1).where(routing.valid_T, 0.0)
        self._add(record.layer, routing.expert_TK, wanted_TK, sent, tokens, entropy_T)

    def _add(
        self,
        layer: int,
        expert_TK: Tensor,
        wanted_TK: Tensor,
        sent: Tensor,
        tokens: Tensor,
        entropy_T: Tensor,
    ) -> None:
        counts, entropy = self._of(layer, expert_TK.device)
        counts.scatter_add_(0, expert_TK.flatten(), wanted_TK.flatten())
        counts[-2:] += torch.stack([sent, tokens])
        entropy += entropy_T.sum()

    def _of(self, layer: int, device: torch.device) -> tuple[Tensor, Tensor]:
        if layer not in self._counts:
            self._counts[layer] = torch.zeros(self._slots[layer] + 2, dtype=torch.int64, device=device)
            self._entropies[layer] = torch.zeros((), device=device)
        return self._counts[layer], self._entropies[layer]

    @torch.no_grad()
    def payload(self, device: torch.device) -> dict[str, Any]:
        """Payload of the `load` event, over all ranks, which must all ask; without blocks that saw no token."""
        found = [self._of(layer, device) for layer in self._slots]
        flat = summed(torch.cat([counts.to(device) for counts, _ in found])).tolist()
        entropy_L = summed(torch.stack([entropy.to(device) for _, entropy in found])).tolist()
        layers, at = [], 0
        for (layer, slots), entropy in zip(self._slots.items(), entropy_L, strict=True):
            wanted_E, (sent, tokens) = flat[at : at + slots], flat[at + slots : at + slots + 2]
            at += slots + 2
            if tokens:
                alive = torch.nonzero(self._alive(layer)).flatten().tolist()
                layers.append(_told(layer, wanted_E, sent, tokens, entropy, alive))
        return {"layers": layers}


def _told(layer: int, wanted_E: list[int], sent: int, tokens: int, entropy: float, alive: list[int]) -> dict[str, Any]:
    wanted = sum(wanted_E)
    load_E = [count / max(wanted, 1) for count in wanted_E]
    return {
        "layer": layer,
        "load": load_E,
        "alive": alive,
        "maxvio": max(load_E) * len(alive) - 1 if wanted else 0.0,
        "dropped": (wanted - sent) / max(wanted, 1),
        "tokens": tokens,
        "experts_per_token": wanted / tokens,
        "effective_experts": math.exp(entropy / tokens),
    }
