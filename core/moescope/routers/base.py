"""The Routing contract: all that a router says about T tokens, and what a router may know when it says it.

Shapes: T tokens (rows of the flattened batch), E expert slots, K slots per token in this Routing (k where k is fixed,
up to E where it varies), d model width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from moescope.config import Config as BaseConfig

Law = Literal[
    "gates_sum_to_one",
    "single_expert_is_expert",
    "token_permutation",
    "expert_relabelling",
    "deterministic_evaluation",
    "batch_independence",
]
"""Laws that a router may break by design; each declared break is checked to be one. All are about evaluation:
`batch_independence` says that other sequences of the batch do not enter."""

Causality = Literal["yes", "no"]

Need = Literal["tokens", "label", "previous", "responses"]
"""What a router reads of its context beyond the token vectors."""


@dataclass(frozen=True)
class Slots:
    """Soft routing: P slots per expert and sequence, each a mixture of the sequence's tokens.

    dispatch_TEP: float32, share of each token in each slot; sums to 1 over the tokens of a sequence (0 at dead slots).
    combine_TEP:  float32, share of each slot's output in each token; over (E, P) it sums to 1 (0 at padding).
    """

    dispatch_TEP: Tensor
    combine_TEP: Tensor


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
    losses:    what the rule itself adds to the loss of a training step, by name, coefficients included; float32.
    chance_TE: float32, where routing is noisy: the chance that a fresh draw of the noise would choose the expert,
               differentiable (1701.06538, Eq. 9); else None.
    input_Td:  what the experts receive in place of the token vectors, where that differs; else None.
    slots:     soft routing only: how tokens mix into slots and back. Then expert_TK lists every expert, best first,
               gate_TK is the mass of its slots in the token's output, and everything alive is wanted and sent.
    """

    logits_TE: Tensor
    probs_TE: Tensor
    scores_TE: Tensor
    expert_TK: Tensor
    gate_TK: Tensor
    wanted_TK: Tensor
    sent_TK: Tensor
    valid_T: Tensor
    losses: Mapping[str, Tensor] = field(default_factory=dict)
    chance_TE: Tensor | None = None
    input_Td: Tensor | None = None
    slots: Slots | None = None

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
    num_steps:  optimizer steps of the whole run, None outside a run; what a schedule given as a share counts from.
    label_T:    int64, the label that the router asked for (`label` of its Config) as an index into its `values`, -1
                where a token has none.
    respond:    forced outputs of every expert on some token vectors, [N, d] -> [N, E, d]; zero at dead slots.
    shift_E:    float32, added to the logits by routers that take it (`Router.shifts`); None: nothing is added.
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
    num_steps: int | None = None
    label_T: Tensor | None = None
    respond: Callable[[Tensor], Tensor] | None = None
    shift_E: Tensor | None = None

    @staticmethod
    def simple(
        num_tokens: int,
        num_experts: int,
        *,
        training: bool = False,
        device: str | torch.device = "cpu",
        **known: Any,
    ) -> RouterContext:
        """One sequence of `num_tokens` valid tokens, every expert alive: enough for a notebook or a test.

        `known`: further fields, such as `token_T`, `previous`, `step` and `num_steps`.
        """
        return RouterContext(
            batch=1,
            seq=num_tokens,
            valid_T=torch.ones(num_tokens, dtype=torch.bool, device=device),
            alive_E=torch.ones(num_experts, dtype=torch.bool, device=device),
            training=training,
            **known,
        )


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where in a model a router is built into.

    first:      no MoE layer comes before it.
    vocab_size: token ids of the model, None where it reads none or none is known.
    """

    first: bool = True
    vocab_size: int | None = None


class Router(nn.Module, ABC):
    """Base of all routers. A subclass declares what it is, and turns token vectors into a Routing in `forward`.

    causal:      "yes" if what position t receives never depends on later positions, as trained.
    causal_from: first position of a sequence of which `causal` holds; the loss counts from there on.
    learns:      whether the router's weights receive a gradient from the language-model loss.
    k:           experts per token where fixed, None where it varies.
    k_meaning:   one phrase saying what k means here.
    rule:        the rule in one line.
    source:      paper and equation.
    oracle:      what its tests compare it with, in one phrase.
    departs:     where it departs from released code or paper, and why; "" where it does not.
    breaks:      laws this router breaks by design.
    needs:       what it reads of its context beyond the token vectors.
    mixes:       whether experts receive mixtures of tokens (`Routing.slots`) in place of tokens.
    per_expert:  names of the parameters and buffers whose rows are expert slots: what growth copies, what relabelling
                 experts permutes.
    eval_draws:  forward passes that an evaluation averages over: more than one where evaluation is random.
    grows:       whether an expert slot may be duplicated and removed while the model trains.
    shifts:      whether logits take `RouterContext.shift_E`, so that a copy and its original can share what the
                 original had: log 2 less on both halves a softmax probability.

    `causal`, `causal_from`, `learns`, `breaks`, `needs` and `eval_draws` on the class hold for the default Config; an
    instance whose options change them sets its own, so read them from the instance. Weights and buffers stay float32
    whatever dtype the model is cast to. State that training moves (schedules, biases, averages) lives in buffers, and
    changes in training only, after the batch was routed, from statistics that are summed over ranks (`moescope.ranks`).
    """

    Config: ClassVar[type[BaseConfig]]
    causal: Causality
    causal_from: int = 0
    learns: bool
    breaks: frozenset[Law] = frozenset()
    k: int | None = None
    eval_draws: int = 1
    k_meaning: ClassVar[str]
    rule: ClassVar[str]
    source: ClassVar[str]
    oracle: ClassVar[str] = "a loop-based reference in the tests"
    departs: ClassVar[str] = ""
    needs: frozenset[Need] = frozenset()
    mixes: ClassVar[bool] = False
    per_expert: tuple[str, ...] = ()
    grows: bool = False
    shifts: bool = False

    def __init__(self, config: BaseConfig, d_model: int, num_experts: int, place: Place | None = None) -> None:
        super().__init__()
        self.config = config
        self.d_model = d_model
        self.num_experts = num_experts
        self.place = place or Place()

    @property
    def rows_Ed(self) -> Tensor | None:
        """The row of each expert slot, [E, r]; None where it has none."""
        return None

    @abstractmethod
    def forward(self, h_Td: Tensor, context: RouterContext) -> Routing:
        """Route T tokens. `h_Td` may be bfloat16; everything is computed in float32."""

    def reset(self, generator: torch.Generator | None = None) -> None:
        """Draw the weights anew, from `generator` where one is given, and put all other state back to its start."""

    def fit(self, count_V: Tensor) -> None:
        """Told once, before the first step of a run, how often each token id occurs in the training data."""

    @torch.no_grad()
    def copy_slot(self, parent: int, child: int) -> None:
        """Growth: the slot `child` becomes a copy of `parent` in all that this router keeps per expert."""
        for rows in self._slot_rows():
            rows[child] = rows[parent]

    @torch.no_grad()
    def forget_slot(self, slot: int) -> None:
        """Removal: what this router keeps of an expert is as if it had never been; its rows become 0."""
        for rows in self._slot_rows():
            rows[slot] = 0

    def copy_cluster(self, parent: int, child: int) -> None:
        """`copy_slot` of the previous MoE layer, for routers that keep statistics of its experts."""

    def forget_cluster(self, slot: int) -> None:
        """`forget_slot` of the previous MoE layer."""

    def towards(self, direction_d: Tensor) -> Tensor:
        """A direction of token vectors in the space of the rows, float32 [r]."""
        return direction_d

    def _shifted(self, logits_TE: Tensor, context: RouterContext) -> Tensor:
        """Logits with the context's shift, where there is one and this router takes it."""
        return logits_TE if context.shift_E is None or not self.shifts else logits_TE + context.shift_E.float()

    def _slot_rows(self) -> list[Tensor]:
        """The parameters and buffers of `per_expert`."""
        found = []
        for name in self.per_expert:
            owner, _, last = name.rpartition(".")
            found.append(getattr(self.get_submodule(owner), last))
        return found

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(keep_dtype, recurse)  # type: ignore[no-untyped-call]
        return self
