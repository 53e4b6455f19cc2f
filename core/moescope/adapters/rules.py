"""How a family's gates and choices follow from its router logits, recomputed apart from the model's own code.

Shapes: T tokens, E experts, k experts per token, d model width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor


@dataclass(frozen=True)
class Decision:
    """probs_TE: float32, sums to 1. scores_TE: float32, what selection ranks. index_Tk: best first. gate_Tk."""

    probs_TE: Tensor
    scores_TE: Tensor
    index_Tk: Tensor
    gate_Tk: Tensor


def softmax_topk(logits_TE: Tensor, k: int, renormalise: bool, gates_in: torch.dtype) -> Decision:
    """Softmax over all experts in float32, the k largest, made to sum to 1 on request.

    Mixtral 2401.04088 (renormalised: equal to its softmax over the k largest logits); OLMoE 2409.02060 (not).
    """
    probs_TE = torch.softmax(logits_TE.float(), dim=-1)
    gate_Tk, index_Tk = torch.topk(probs_TE, k, dim=-1)
    if renormalise:
        gate_Tk = gate_Tk / gate_Tk.sum(dim=-1, keepdim=True)
    return Decision(probs_TE, probs_TE, index_Tk, gate_Tk.to(gates_in))


Rule = Callable[[Tensor, int, bool, torch.dtype], Decision]

RULES: Final[dict[str, Rule]] = {"softmax_topk": softmax_topk}
"""Name (as in the table of architectures) to rule: (logits_TE, k, renormalise, dtype of the gates) -> Decision."""
