"""How the set of experts grows in a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from moescope.config import Config, doc, parse


@dataclass(frozen=True, kw_only=True)
class ExpansionConfig(Config):
    """Growth of the set of experts in a run's first steps: who is duplicated, how the copy starts, whether it stays."""

    detector: str = field(default="mass", metadata=doc("what says that an expert should be duplicated"))
    detector_config: dict[str, Any] = field(default_factory=dict, metadata=doc("options of the detector"))
    initialiser: str = field(default="clone", metadata=doc("how a copy is parted from its original"))
    initialiser_config: dict[str, Any] = field(default_factory=dict, metadata=doc("options of the initialiser"))
    acceptor: str = field(default="always", metadata=doc("whether an added expert stays"))
    acceptor_config: dict[str, Any] = field(default_factory=dict, metadata=doc("options of the acceptor"))
    phase: float = field(default=0.1, metadata=doc("share of the run's steps in which experts are watched and added"))
    phase_steps: int | None = field(default=None, metadata=doc("that many steps instead; none: the share"))
    start: int = field(default=0, metadata=doc("first step that is watched"))
    layers: Literal["all"] | tuple[int, ...] = field(
        default="all", metadata=doc("blocks that grow: all with experts, or indices")
    )
    preserve: Literal["auto", "on", "off"] = field(
        default="auto",
        metadata=doc(
            "lower both logits by log 2, so that parent and copy together keep the parent's probability; auto: where "
            "the number of experts per token varies or every living expert is used"
        ),
    )
    moments: Literal["zero", "copy"] = field(
        default="zero", metadata=doc("the optimizer's moments of a new expert: zero, or its parent's")
    )
    redundancy: float = field(
        default=0.01, metadata=doc("coefficient of the redundancy objective over duplicated pairs, in the growth phase")
    )
    patience: int = field(default=3, metadata=doc("added experts that an acceptor may refuse before a block gives up"))
    prune_at_end: bool = field(
        default=False, metadata=doc("after the phase, remove experts whose removal costs no held-out loss")
    )
    prune_tolerance: float = field(
        default=0.0, metadata=doc("most that these removals may cost together, as a share of the held-out loss")
    )
    drift_every: int = field(default=1, metadata=doc("steps between `drift` events in which nothing fired"))

    def __post_init__(self) -> None:
        from moescope.expansion import ACCEPTORS, DETECTORS, INITIALISERS

        for name, registry in (("detector", DETECTORS), ("initialiser", INITIALISERS), ("acceptor", ACCEPTORS)):
            chosen = getattr(self, name)
            self.require(chosen in registry, name, f"there are {', '.join(registry)}.")
            parse(registry[chosen].Config, getattr(self, f"{name}_config"))
        self.require(0 < self.phase <= 1, "phase", "it must lie in (0, 1].")
        self.require(self.phase_steps is None or self.phase_steps >= 0, "phase_steps", "it must not be negative.")
        self.require(self.start >= 0, "start", "it must not be negative.")
        distinct = self.layers == "all" or (0 < len(set(self.layers)) == len(self.layers) and min(self.layers) >= 0)
        self.require(distinct, "layers", "blocks are named once each, from 0 on.")
        for name in ("redundancy", "prune_tolerance"):
            self.require(0 <= getattr(self, name) < float("inf"), name, "it must not be negative.")
        for name in ("patience", "drift_every"):
            self.require(getattr(self, name) >= 1, name, "at least 1.")

    def phase_end(self, steps: int) -> int:
        """The step from which the set of experts is fixed, in a run of `steps`."""
        length = round(self.phase * steps) if self.phase_steps is None else self.phase_steps
        return min(steps, self.start + length) if length else 0

    @staticmethod
    def by_hand() -> ExpansionConfig:
        """For a run that does not grow by itself: nothing is watched, nothing told, slots can be split by hand."""
        return ExpansionConfig(detector="never", phase_steps=0)
