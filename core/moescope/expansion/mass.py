"""Semantic drift: a gradient that keeps growing, and that points where the expert's weights do not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

import torch
from torch import Tensor

from moescope.config import Config, doc
from moescope.expansion.base import Detector, Finding, Scope, State, Threshold, View, argbest
from moescope.expansion.windows import Windows

_FIRST: Final = 3
"""The first norm that gets a z: two have no spread to speak of."""

_ROUNDING: Final = 1e-12
"""A spread below this share of the mean is that of equal norms, but for rounding."""

_CALIBRATION: Final = math.sqrt(2 / 3)
"""Standard deviation of s under independent norms (each z is standardised by a window that it is part of, and
neighbours share most of their windows)."""


@dataclass(frozen=True, kw_only=True)
class MassConfig(Config):
    scope: Scope = field(
        default="fc1", metadata=doc("whose gradient: the expert's first linear weight, or all its weights")
    )
    omega: int = field(default=20, metadata=doc("window, in samples of an expert: of its norms, and of its z's"))
    warmup: int = field(default=30, metadata=doc("T_warmup, samples of an expert before it is tested"))
    alpha: float = field(default=0.01, metadata=doc("p-value at or below which the norm counts as rising"))
    delta: Literal["absolute", "scaled"] = field(
        default="scaled",
        metadata=doc("|cos(gradient, weight)| must lie below delta_at (the paper), or below c / sqrt(D)"),
    )
    delta_at: float = field(default=1e-3, metadata=doc("the bound with delta = absolute"))
    c: float = field(
        default=2.0, metadata=doc("with delta = scaled: bound in units of 1 / sqrt(D), a random gradient's cosine")
    )
    calibrated: bool = field(
        default=False, metadata=doc("divide the statistic by its standard deviation under independent norms, sqrt(2/3)")
    )
    full_windows: bool = field(
        default=True,
        metadata=doc("test only with omega z's; false: after T_warmup with those there are, still over sqrt(omega)"),
    )

    def __post_init__(self) -> None:
        self.require(_FIRST <= self.omega <= 1 << 20, "omega", f"it must lie between {_FIRST} and {1 << 20}.")
        self.require(self.warmup >= 0, "warmup", "it must not be negative.")
        self.require(0 < self.alpha < 1, "alpha", "it must lie between 0 and 1.")
        self.require(0 < self.delta_at <= 1, "delta_at", "it must lie in (0, 1].")
        self.require(0 < self.c < math.inf, "c", "it must be above 0.")
        whole = self.full_windows or not self.calibrated
        self.require(whole, "calibrated", "its constant holds for full windows only.")


class Mass(Detector):
    """An expert fires where its gradient's norm has been rising, and the gradient is orthogonal to its weights.

    g_t is the norm at the expert's t-th sample (a step in which it got tokens); mean and unbiased standard deviation
    are over its last ω norms, this one included; z_t = (g_t - mean)/std, 0 where std is 0. Every z keeps the mean and
    std of its own time: standardised anew by today's, they sum to 0 whatever happened. s = Σ of the last ω z's /
    sqrt(ω), p = 1 - Φ(s); rising where p <= α. A falling norm never fires. Orthogonal where |cos| < δ; `cosine` is
    that absolute value.

    Under independent norms s has variance 2/3 (so p <= α less often than α), under autocorrelated ones more than 1.
    """

    Config = MassConfig
    config: MassConfig
    rule = "the gradient's norm rises (p <= α over a window of z's) and |cos(gradient, weight)| < δ"
    source = "MASS 2512.19765, section 3"
    departs = (
        "δ is c/sqrt(D) instead of 0.001, which says more about the paper's D than about drift; windows are numbers of "
        "steps, where the paper's shares of the run allow one split per expert; both windows must be full"
    )

    def __init__(self, config: MassConfig, num_slots: int, seed: int = 0) -> None:
        super().__init__(config, num_slots, seed)
        self.scope = config.scope
        self.count_E = torch.zeros(num_slots, dtype=torch.int64)
        self.norms, self.zs = Windows(num_slots, config.omega), Windows(num_slots, config.omega)

    def look(self, view: View) -> Finding:
        config = self.config
        sample_E = view.alive_E & (view.sent_E > 0)
        self.count_E = self.count_E + sample_E
        self.norms.push(view.norm_E, sample_E)
        mean_E, std_E = self.norms.mean_std()
        z_E = ((view.norm_E - mean_E) / std_E).where(std_E > _ROUNDING * mean_E, 0.0)
        counts_E = sample_E & (self.norms.count() >= _FIRST)
        self.zs.push(z_E, counts_E)
        s_E = self.zs.total() / math.sqrt(config.omega)
        if config.calibrated:
            s_E = s_E / _CALIBRATION
        tested_E = view.alive_E & self._ready()
        p_E = torch.special.ndtr(-s_E).where(tested_E, torch.nan)
        cos_E, delta = view.cos_E.abs(), self.delta(view.size)
        fired_E = sample_E & (p_E <= config.alpha) & (cos_E < delta)
        return Finding(
            signals={
                "grad_norm": view.norm_E,
                "z": z_E.where(counts_E, torch.nan),
                "p_value": p_E,
                "cosine": cos_E.where(sample_E, torch.nan),
            },
            thresholds={
                "p_value": Threshold(at=config.alpha, fires="below"),
                "cosine": Threshold(at=delta, fires="below"),
            },
            fired_E=fired_E,
            chosen=argbest(s_E, fired_E),
        )

    def delta(self, size: int) -> float:
        """The bound on |cos|, for D = `size` numbers."""
        return self.config.delta_at if self.config.delta == "absolute" else self.config.c / math.sqrt(size)

    def _ready(self) -> Tensor:
        held_E, warm_E = self.zs.count(), self.count_E > self.config.warmup
        return warm_E & (held_E >= (self.config.omega if self.config.full_windows else 1))

    def grown(self, parent: int, child: int) -> None:
        """Count and windows of the source start again, and those of the copy."""
        self.retired(parent)
        self.retired(child)

    def retired(self, slot: int) -> None:
        self.count_E = self.count_E.index_fill(0, torch.tensor([slot]), 0)
        self.norms.clear(slot)
        self.zs.clear(slot)

    def state(self) -> State:
        return {"count": self.count_E, "norms": self.norms.value_EW, "zs": self.zs.value_EW}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.count_E, self.norms.value_EW, self.zs.value_EW = state["count"], state["norms"], state["zs"]
