"""The Routing contract: all that a router says about T tokens, and what a router may know when it says it.

Shapes: T tokens (rows of the flattened batch), E expert slots, K slots per token in this Routing (k where k is fixed,
up to E where it varies), d model width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from moescope.config import Config as BaseConfig

Law = Literal[
    "gates_sum_to_one", "single_expert_is_expert", "token_permutation", "expert_relabelling", "deterministic_evaluation"
]
"""Laws that a router may break by design; each declared break is checked to be one."""

Causality = Literal["yes", "no"]


@dataclass(frozen=True)
class Routing:
    """What a router decided for T tokens. Frozen; objectives, the recorder and the measures are functions of it.

    Three quantities are kept apart: raw *logits*, the *scores* that select (after softmax or sigmoid, bias, group
    mask), and the *gates* that weigh expert outputs. Whether a token was sent is explicit: a gate may underflow to 0.

    logits_TE: float32, raw router output; -inf for dead slots.
    probs_TE:  float32, the router's distribution over experts (rows sum to 1 over alive experts); the P of the balance
               loss and of routing entropy. For a sigmoid router: its scores over their sum.
    scores_TE: float32, what selection ranked; -inf where an expert could not be chosen.
    expert_TK: int64, the expert in each slot, best first where the router ranks. Defined (in range) in every slot,
               meaningful only where `wanted_TK`.
    gate_TK:   float32, weight of that expert's output; exactly 0 where not sent.
    wanted_TK: bool, the router chose this expert for this token (before capacity drops).
    sent_TK:   bool, the token was really sent there; sent implies wanted. Wanted but not sent is a dropped assignment.
    valid_T:   bool, False for padding; a padding row is wanted and sent nowhere.
    """

    logits_TE: Tensor
    probs_TE: Tensor
    scores_TE: Tensor
    expert_TK: Tensor
    gate_TK: Tensor
    wanted_TK: Tensor
    sent_TK: Tensor
    valid_T: Tensor

    @property
    def num_experts(self) -> int:
        """E, dead slots included."""
        return self.logits_TE.shape[-1]


@dataclass(frozen=True, kw_only=True)
class RouterContext:
    """What a router may know beyond the token vectors. Everything a router needs from outside is a field here.

    batch, seq: T = batch * seq, rows in batch-major order.
    valid_T:    bool, False for padding.
    alive_E:    bool, which expert slots exist (E_max slots are allocated once; growth only flips this mask).
    training:   training or evaluation.
    step:       optimizer steps done so far.
    token_T:    int64 token ids, where the model reads tokens.
    previous:   Routing of the previous MoE layer of the same forward pass, None in the first.
    layer:      index of this block in the model.
    max_seq:    the model's longest sequence, where there is a model; what a capacity per sequence counts from, so that
                neither padding nor the sequence's own length (which later tokens make) enters.
    """

    batch: int
    seq: int
    valid_T: Tensor
    alive_E: Tensor
    training: bool
    step: int = 0
    token_T: Tensor | None = None
    previous: Routing | None = None
    layer: int = 0
    max_seq: int | None = None

    @staticmethod
    def simple(
        num_tokens: int, num_experts: int, *, training: bool = False, device: str | torch.device = "cpu"
    ) -> RouterContext:
        """One sequence of `num_tokens` valid tokens, every expert alive: enough for a notebook or a test."""
        return RouterContext(
            batch=1,
            seq=num_tokens,
            valid_T=torch.ones(num_tokens, dtype=torch.bool, device=device),
            alive_E=torch.ones(num_experts, dtype=torch.bool, device=device),
            training=training,
        )


class Router(nn.Module, ABC):
    """Base of all routers. A subclass declares what it is, and turns token vectors into a Routing in `forward`.

    causal:    "yes" if what position t receives never depends on later positions, as trained.
    learns:    whether the router's weights receive a gradient from the language-model loss.
    k:         experts per token where fixed, None where it varies.
    k_meaning: one phrase saying what k means here.
    rule:      the rule in one line.
    source:    paper and equation.
    breaks:    laws this router breaks by design.

    `causal`, `learns` and `breaks` on the class hold for the default Config; an instance whose options change them
    sets its own, so read them from the instance. Weights and buffers stay float32 whatever dtype the model is cast to.
    """

    Config: ClassVar[type[BaseConfig]]
    causal: Causality
    learns: bool
    breaks: frozenset[Law] = frozenset()
    k: int | None = None
    k_meaning: ClassVar[str]
    rule: ClassVar[str]
    source: ClassVar[str]

    def __init__(self, config: BaseConfig, d_model: int, num_experts: int) -> None:
        super().__init__()
        self.config = config
        self.d_model = d_model
        self.num_experts = num_experts

    @abstractmethod
    def forward(self, h_Td: Tensor, context: RouterContext) -> Routing:
        """Route T tokens. `h_Td` may be bfloat16; everything is computed in float32."""

    def reset(self, generator: torch.Generator | None = None) -> None:
        """Draw the weights anew, from `generator` where one is given."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(keep_dtype, recurse)  # type: ignore[no-untyped-call]
        return self
