"""What a sweep is: a base run, variants of it, seeds, what is measured, and the claims that are put to the test."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from moescope.config import Config, doc
from moescope.sweep.names import MetricName, same_metric

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,47}")
NULL = "null"
"""What a claim compares with where it compares a metric with its own null."""

Direction = Literal["lower", "higher", "within"]


@dataclass(frozen=True, kw_only=True)
class VariantConfig(Config):
    """One way of doing it: settings on top of the base."""

    label: str = field(default="", metadata=doc("as shown; the variant's name if left out"))
    description: str = field(default="", metadata=doc("one sentence"))
    set: dict[str, Any] = field(default_factory=dict, metadata=doc("settings of its runs, nested or by dotted key"))


@dataclass(frozen=True, kw_only=True)
class ClaimConfig(Config):
    """A statement about the difference of two variants in one metric, paired by seed."""

    metric: str = field(metadata=doc("one of the sweep's metrics"))
    variant: str = field(metadata=doc("the variant that is spoken of"))
    against: str = field(metadata=doc("the variant it is compared with, or `null`: the metric's own null"))
    direction: Direction = field(metadata=doc("lower, higher, or within the margin"))
    margin: float = field(default=0.0, metadata=doc("within: equivalence margin; else the least size of the effect"))
    relative: bool = field(default=True, metadata=doc("the margin is a share of the mean of `against`"))
    layer: int | Literal["mean"] = field(default="mean", metadata=doc("block, or the mean over the MoE blocks"))
    paper: str = field(default="", metadata=doc("what is claimed, and by whom"))

    def __post_init__(self) -> None:
        self.require(0 <= self.margin < float("inf"), "margin", "it must not be negative.")
        self.require(self.direction != "within" or self.margin > 0, "margin", "equivalence needs a margin above 0.")
        self.require(self.variant != self.against, "against", "a variant cannot be compared with itself.")


@dataclass(frozen=True, kw_only=True)
class SweepConfig(Config):
    """A grid of runs, variants x seeds. Raises `InputError` for what cannot be run or compared."""

    title: str = field(default="", metadata=doc("as shown"))
    description: str = field(default="", metadata=doc("what is compared, and why"))
    seconds: int = field(default=0, metadata=doc("about its time on two CPU cores"))
    base: str | dict[str, Any] = field(metadata=doc("a preset, a run's TOML file, or a run configuration"))
    set: dict[str, Any] = field(default_factory=dict, metadata=doc("settings of every cell, on top of the base"))
    variants: dict[str, VariantConfig] = field(metadata=doc("what is compared"))
    seeds: tuple[int, ...] = field(default=(0, 1, 2), metadata=doc("the runs' `seed`: weights, order and noise"))
    fresh_data: bool = field(
        default=False, metadata=doc("each seed is also the `data.seed` of its runs: made-up data are drawn anew")
    )
    metrics: tuple[str, ...] = field(default=("eval_loss",), metadata=doc("what is taken from each finished cell"))
    reference: str = field(default="", metadata=doc("what differences are taken against; the first variant if empty"))
    tolerance: float = field(default=0.01, metadata=doc("share by which active parameters may differ unmarked"))
    claims: tuple[ClaimConfig, ...] = field(default=(), metadata=doc("statements that the sweep puts to the test"))

    def __post_init__(self) -> None:
        self.require(bool(self.variants), "variants", "a sweep needs at least one.")
        for name in self.variants:
            fits = _NAME.fullmatch(name) is not None and name != NULL
            self.require(fits, "variants", f"{name!r} is no name: use a-z, 0-9, - and _, at most 48.")
        self.require(bool(self.seeds), "seeds", "a sweep needs at least one.")
        self.require(len(set(self.seeds)) == len(self.seeds), "seeds", "one of them stands there twice.")
        self.require(all(seed >= 0 for seed in self.seeds), "seeds", "they must not be negative.")
        self.require(0 <= self.tolerance < 1, "tolerance", "it must lie between 0 and 1.")
        known = ", ".join(self.variants)
        if self.reference:
            self.require(self.reference in self.variants, "reference", f"the variants are {known}.")
        self.require(bool(self.metrics), "metrics", "a sweep needs at least one.")
        for metric in self.metrics:
            MetricName.parse(metric)
        for claim in self.claims:
            claim.require(claim.variant in self.variants, "variant", f"the variants are {known}.")
            there = claim.against == NULL or claim.against in self.variants
            claim.require(there, "against", f"the variants are {known}.")
            measured = any(same_metric(claim.metric, metric) for metric in self.metrics)
            claim.require(measured, "metric", "it is not among the sweep's metrics.")

    @property
    def against(self) -> str:
        """The variant that differences are taken against."""
        return self.reference or next(iter(self.variants))

    def label(self, variant: str) -> str:
        """A variant as shown."""
        return self.variants[variant].label or variant
