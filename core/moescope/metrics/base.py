"""What a measure is, and what it hands back: a number beside its null, its spread, its n and its tensor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import numpy as np

from moescope.metrics.nulls import Tail, interval95, tail_p
from moescope.metrics.view import LayerView

NOT_ENOUGH: Final = "not enough data"


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One measure of one layer. `None` stands for "not enough data" or "does not exist here"; `note` says which.

    metric:    registry id. layer: index of the block in the model. label: the label it is about, if any.
    value:     the measure, in `unit`. null: what random routing or shuffled labels would score, as `null_kind` says.
    null_std:  standard deviation of the null; None where the null is a reference without spread, hence no z, no p.
    z:         (value - null) / null_std. p: share of null draws at least as extreme, never 0.
    interval:  95 % bootstrap interval (low, high) of the value, documents resampled (blocks of 64 tokens where there
               is one).
    n:         tokens that the value rests on. tensor: the trace's tensor. note: what a reader must know; "" if nothing.
    detail:    plain numbers, and tuples of numbers aligned with `detail["experts"]`; each metric's `details` names
               them.
    """

    metric: str
    layer: int
    label: str | None = None
    value: float | None
    null: float | None = None
    null_std: float | None = None
    z: float | None = None
    p: float | None = None
    interval: tuple[float, float] | None = None
    n: int
    unit: str
    tensor: str
    note: str = ""
    null_kind: str
    detail: Mapping[str, Any] = field(default_factory=dict)


class Metric(ABC):
    """Base of all measures. A subclass says in words what it is, and computes itself for one layer.

    name: registry id. title: as shown. definition, null, caveat: one line each, for `docs/metrics.md`.
    unit: of the value. tensor: what it is read from, `{layer}` for the layer. source: where the definition comes from.
    tail: which side of the null counts as extreme. details: keys of `Measurement.detail`, each with its meaning.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    definition: ClassVar[str]
    null: ClassVar[str]
    caveat: ClassVar[str]
    unit: ClassVar[str]
    tensor: ClassVar[str]
    source: ClassVar[str]
    tail: ClassVar[Tail] = "upper"
    details: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def compute(self, view: LayerView) -> Iterator[Measurement]:
        """The measure of one layer; one Measurement, or one per label."""

    def missing(self, view: LayerView, why: str, *, n: int = 0, label: str | None = None) -> Measurement:
        """A Measurement without value. "Not enough data" is an answer."""
        return Measurement(
            metric=self.name,
            layer=view.layer,
            label=label,
            value=None,
            n=n,
            unit=self.unit,
            tensor=self.tensor.format(layer=view.layer),
            note=f"{NOT_ENOUGH}: {why}",
            null_kind=self.null,
        )

    def result(
        self,
        view: LayerView,
        value: float,
        *,
        n: int,
        null: float | None = None,
        draws_P: np.ndarray | None = None,
        replicates_B: np.ndarray | None = None,
        recentre: bool = True,
        bounds: tuple[float, float] = (-np.inf, np.inf),
        label: str | None = None,
        notes: tuple[str, ...] = (),
        null_kind: str | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> Measurement:
        """Put the value beside its null: `draws_P` from the null's law, or one reference number `null` without spread.

        `replicates_B` are bootstrap values; `recentre` moves their mean to the value (see `interval95`).
        """
        spread = z = p = None
        if draws_P is not None and draws_P.size > 1:
            null, spread = float(draws_P.mean()), float(draws_P.std(ddof=1))
            p = tail_p(value, draws_P, self.tail)
            z = (value - null) / spread if spread > 1e-12 * max(1.0, abs(null)) else None
        interval = None
        if replicates_B is not None:
            interval = interval95(value, replicates_B, recentre=recentre, bounds=bounds)
        return Measurement(
            metric=self.name,
            layer=view.layer,
            label=label,
            value=float(value),
            null=null,
            null_std=spread,
            z=z,
            p=p,
            interval=interval,
            n=n,
            unit=self.unit,
            tensor=self.tensor.format(layer=view.layer),
            note=" ".join(note for note in (*notes, view.bootstrap_note if interval else "") if note),
            null_kind=null_kind or self.null,
            detail={} if detail is None else detail,
        )


def numbers(values: np.ndarray) -> tuple[float, ...]:
    """An array as plain floats, for `detail`."""
    return tuple(float(value) for value in values)
