"""What growth is made of: detectors see one layer after its backward pass, initialisers part a copy from its original,
acceptors judge what was added.

One instance of each serves one MoE layer. State is a dict of tensors on the CPU (float64, int64, bool); with it, a
restored instance goes on bit for bit. Shapes: E expert slots, d model
width, n tokens sent to one expert, g rows of the expert's first linear weight.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final, Literal

import torch
from torch import Tensor

from moescope.config import Config as BaseConfig

State = dict[str, Tensor]

Why = Literal["drift", "coverage", "random"]
"""What a detector answers to; the `why` of an `expansion` event."""

Scope = Literal["fc1", "all"]


@dataclass(frozen=True, kw_only=True)
class TokenGradients:
    """What the tokens sent to one expert ask of its first linear map: dL/dW = u_ngᵀ x_nd.

    Those of the global batch, in its order, the same on every rank; float32 on the model's device.

    x_nd: what the expert was handed.
    u_ng: gradient of the step's loss with respect to the pre-activations W x, gate included.
    h_nd: what was routed, where that is not what the expert was handed; else None.
    """

    x_nd: Tensor
    u_ng: Tensor
    h_nd: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class View:
    """One MoE layer after the backward pass of one step, the same on every rank. Tensors are on the CPU.

    layer:      index of the block.
    step:       optimizer steps done before this one.
    alive_E:    bool.
    norm_E:     float64, L2 norm of the batch gradient of the expert's first linear weight, or of all its weights
                (`Detector.scope`); 0 at dead slots.
    cos_E:      float64, cosine of that gradient with the weights, both flattened; 0 where either is 0.
    size:       how many numbers these are (the D of 1/sqrt(D)).
    sent_E:     int64, tokens sent to the expert, over the global batch.
    tokens:     valid tokens of the global batch.
    unreached:  those of them for which no expert was wanted.
    loss:       the step's training loss, objectives left out.
    unreached_mean: mean of the layer's inputs over the unreached tokens, float32 [d]; None where all were reached.
    nearest:    the living expert whose row has the largest cosine with a token vector [d]; None without rows.
    gradients:  (expert, most, seed) -> token gradients of one expert, of at most so many tokens, computed when asked
                for; there on the steps on which the detector `wants_gradients`.
    """

    layer: int
    step: int
    alive_E: Tensor
    norm_E: Tensor
    cos_E: Tensor
    size: int
    sent_E: Tensor
    tokens: int
    unreached: int
    loss: float
    unreached_mean: Callable[[], Tensor | None] = lambda: None
    nearest: Callable[[Tensor], int | None] = lambda token_d: None
    gradients: Callable[[int, int, int], TokenGradients] | None = None


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """Where a signal fires."""

    at: float
    fires: Literal["below", "above"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a detector says of one view.

    signals:     float64 [E] by name; NaN where not yet defined.
    thresholds:  of those signals that decide.
    fired_E:     bool, experts for which all conditions hold.
    chosen:      the one that should be duplicated now, None for none. (The controller may still refuse: no free slot.)
    drop:        experts that should be removed now.
    direction_d: float32, direction in the space of the layer's inputs along which the copy's routing should part from
                 the original's, of such length that its product with the parent's tokens has mean square 1; None: the
                 initialiser's choice.
    row_d:       float32, where in that space the new expert's row should point, in place of its parent's; None: a copy.
    note:        one phrase, where there is something to say.
    """

    signals: Mapping[str, Tensor]
    thresholds: Mapping[str, Threshold]
    fired_E: Tensor
    chosen: int | None = None
    drop: tuple[int, ...] = ()
    direction_d: Tensor | None = None
    row_d: Tensor | None = None
    note: str = ""


class Stateful:
    """What a part remembers, as named tensors; by default nothing."""

    def state(self) -> State:
        """Everything that the next call depends on. The tensors are not changed afterwards by this instance."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave."""

    def grown(self, parent: int, child: int) -> None:
        """Told after a slot came alive as a copy of another, by whatever cause."""

    def retired(self, slot: int) -> None:
        """Told after a slot died, by whatever cause."""


class Detector(Stateful, ABC):
    """Says which expert of one layer should be duplicated. Called on every step of the growth phase.

    rule:     in one line. source: paper and equation. departs: from it, and why.
    why:      what it answers to.
    captures: whether it reads `View.gradients`, which costs memory and time.
    drops:    whether it may name experts to be removed.
    scope:    whose gradient `View.norm_E` and `cos_E` are of: the first linear weight, or all of the expert's.
    """

    Config: ClassVar[type[BaseConfig]]
    rule: ClassVar[str]
    source: ClassVar[str]
    departs: ClassVar[str] = ""
    why: ClassVar[Why] = "drift"
    captures: ClassVar[bool] = False
    drops: ClassVar[bool] = False
    scope: Scope = "fc1"

    def __init__(self, config: BaseConfig, num_slots: int, seed: int = 0) -> None:
        self.config = config
        self.num_slots = num_slots
        self.seed = seed
        """Of this layer; what is drawn at a step is a function of (seed, step) alone."""

    def wants_gradients(self, step: int) -> bool:
        """Asked before the forward pass: whether `look` will read `View.gradients` of this step."""
        return self.captures

    @abstractmethod
    def look(self, view: View) -> Finding:
        """Take in one step and judge it."""


def argbest(score_E: Tensor, fired_E: Tensor) -> int | None:
    """The fired expert of highest score (the lowest id among equals), None where none fired."""
    if not bool(fired_E.any()):
        return None
    return int(score_E.masked_fill(~fired_E, -torch.inf).argmax())


ROUNDING: Final = 1e-6
"""Held-out losses that are nearer to each other than this share are equal but for float32's rounding."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Held-out loss, evaluation mode, the same number on every rank. Each call is one evaluation.

    now:     of the model as it is.
    without: with one slot of this layer masked; afterwards the model is bit for bit as it was.
    """

    now: Callable[[], float]
    without: Callable[[int], float]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What an acceptor says of one addition.

    loss_before, loss_after: held-out, without and with the child.
    give_up:     growth in this layer is over (patience).
    roll_back:   a refused child's parent becomes again what it was before the growth (`Acceptor.keeps_parent`).
    """

    parent: int
    child: int
    kept: bool
    loss_before: float
    loss_after: float
    why: str
    patience: int | None = None
    give_up: bool = False
    roll_back: bool = False


class Acceptor(Stateful, ABC):
    """Says of one layer's additions whether they stay."""

    Config: ClassVar[type[BaseConfig]]
    rule: ClassVar[str]
    source: ClassVar[str]
    departs: ClassVar[str] = ""
    keeps_parent: bool = False
    """Whether the parent's weights and moments of the moment of growth have to be kept until the verdict."""
    takes: int = 0
    """Steps from a growth to its verdict: none is begun that could not be judged within the phase."""

    def __init__(self, config: BaseConfig, num_slots: int, patience: int) -> None:
        self.config = config
        self.num_slots = num_slots
        self.patience = patience

    def began(self, step: int, parent: int, child: int, loss_before: float) -> None:
        """Told after a growth by the detector (`grown` is told as well)."""

    def busy(self) -> bool:
        """Whether an addition is on trial, so that the layer must not grow now."""
        return False

    def before_growth(self, step: int, measure: Measure) -> Verdict | None:
        """Asked when the detector has chosen, before anything is copied."""
        return None

    def after_step(self, step: int, measure: Measure) -> Verdict | None:
        """Asked after every optimizer step, `step` being the steps done."""
        return None


@dataclass(frozen=True, kw_only=True)
class Split:
    """One growth, as an initialiser is told of it: rows of `child` already equal those of `parent`.

    rows_Er:       the router's rows, to be changed in place; None where it has none.
    direction_r:   the detector's direction in the rows' space; None where it gave none.
    first_Egd:     first linear weight of all experts.
    first_grad_Egd, rows_grad_Er: their gradients on this step, to be changed in place; None between steps.
    generator:     CPU generator, a function of seed, layer and step.
    """

    parent: int
    child: int
    rows_Er: Tensor | None
    direction_r: Tensor | None
    first_Egd: Tensor
    first_grad_Egd: Tensor | None = None
    rows_grad_Er: Tensor | None = None
    generator: torch.Generator = field(default_factory=torch.Generator)


class Initialiser(ABC):
    """Parts a copy from its original. Weights, router state and gradients of the slot were copied before."""

    Config: ClassVar[type[BaseConfig]]
    rule: ClassVar[str]
    source: ClassVar[str]
    departs: ClassVar[str] = ""

    def __init__(self, config: BaseConfig) -> None:
        self.config = config

    @abstractmethod
    def part(self, split: Split) -> None:
        """Change weights and gradients of parent and child in place."""
