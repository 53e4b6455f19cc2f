"""A classical test for a rise of the mean, on the gradient's norm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from moescope.config import Config, doc
from moescope.expansion.base import Detector, Finding, Scope, State, Threshold, View, argbest


@dataclass(frozen=True, kw_only=True)
class PageHinkleyConfig(Config):
    scope: Scope = field(
        default="fc1", metadata=doc("whose gradient: the expert's first linear weight, or all its weights")
    )
    delta: float = field(
        default=0.05, metadata=doc("rise that is tolerated at every step, as a share of the mean norm so far")
    )
    lam: float = field(default=2.0, metadata=doc("λ, the accumulated rise above which the test fires, in such shares"))
    min_samples: int = field(default=30, metadata=doc("samples of an expert before it is tested"))

    def __post_init__(self) -> None:
        self.require(0 <= self.delta < math.inf, "delta", "it must not be negative.")
        self.require(0 < self.lam < math.inf, "lam", "it must be above 0.")
        self.require(self.min_samples >= 2, "min_samples", "at least 2.")


class PageHinkley(Detector):
    """m_t = Σ_i (g_i / mean_i - 1 - δ), mean_i of the expert's first i norms; fires where m_t - min m_i > λ.

    A norm that falls lowers m and its minimum together, and never fires. A step without tokens is no sample.
    """

    Config = PageHinkleyConfig
    config: PageHinkleyConfig
    rule = "the accumulated rise of the gradient's norm above its running mean exceeds λ"
    source = "Page 1954 (Continuous inspection schemes, Biometrika 41); Hinkley 1971 (Biometrika 58)"
    departs = "in shares of the running mean, so that one setting serves every layer and size"

    def __init__(self, config: PageHinkleyConfig, num_slots: int, seed: int = 0) -> None:
        super().__init__(config, num_slots, seed)
        self.scope = config.scope
        self.count_E, self.sum_E, self.rise_E, self.least_E = torch.zeros(4, num_slots, dtype=torch.float64)

    def look(self, view: View) -> Finding:
        sample_E = view.alive_E & (view.sent_E > 0)
        self.count_E = self.count_E + sample_E
        self.sum_E = self.sum_E + view.norm_E.where(sample_E, 0.0)
        mean_E = self.sum_E / self.count_E.clamp_min(1)
        step_E = (view.norm_E / mean_E).where(mean_E > 0, 1.0) - 1 - self.config.delta
        self.rise_E = self.rise_E + step_E.where(sample_E, 0.0)
        self.least_E = self.least_E.minimum(self.rise_E)
        above_E = self.rise_E - self.least_E
        tested_E = view.alive_E & (self.count_E >= self.config.min_samples)
        fired_E = sample_E & tested_E & (above_E > self.config.lam)
        return Finding(
            signals={"grad_norm": view.norm_E, "page_hinkley": above_E.where(tested_E, torch.nan)},
            thresholds={"page_hinkley": Threshold(at=self.config.lam, fires="above")},
            fired_E=fired_E,
            chosen=argbest(above_E, fired_E),
        )

    def grown(self, parent: int, child: int) -> None:
        self.retired(parent)
        self.retired(child)

    def retired(self, slot: int) -> None:
        where = torch.tensor([slot])
        self.restore({name: value.index_fill(0, where, 0.0) for name, value in self.state().items()})

    def state(self) -> State:
        return {"count": self.count_E, "sum": self.sum_E, "rise": self.rise_E, "least": self.least_E}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.count_E, self.sum_E = state["count"], state["sum"]
        self.rise_E, self.least_E = state["rise"], state["least"]
