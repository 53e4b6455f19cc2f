"""Training data that comes bit by bit: which documents there are at which step."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from moescope.config import Config, doc
from moescope.data.base import Labels, TokenSet
from moescope.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ArriveConfig(Config):
    """Documents join the training data by their label's value; held-out data and probe hold all from the start."""

    label: str = field(metadata=doc("a label of documents, by its name in the data"))
    order: tuple[str | tuple[str, ...], ...] = field(
        default=(),
        metadata=doc(
            "its values in the order in which they come; a list comes at once. The first is there from the start, as "
            "are documents of values that are not named. Empty: all values, as the data orders them"
        ),
    )
    every: int = field(default=100, metadata=doc("steps from one to the next"))

    def __post_init__(self) -> None:
        self.require(bool(self.label), "label", "it must name a label of the data.")
        self.require(self.every >= 1, "every", "at least 1.")
        named = [value for group in self.groups for value in group]
        self.require(all(self.groups), "order", "a list in it is empty.")
        self.require(len(set(named)) == len(named), "order", "a value stands there twice.")

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """The values that come together, in order."""
        return tuple((group,) if isinstance(group, str) else tuple(group) for group in self.order)


@dataclass(frozen=True)
class Arrival:
    """Documents of this value are in the training data from this step on (0: from the start)."""

    value: str
    step: int


def arrivals(config: ArriveConfig, tokens: TokenSet, steps: int) -> tuple[Arrival, ...]:
    """What comes when, within a run of `steps` steps. Raises `InputError` for a label or value that is not there."""
    labels = _labels(config, tokens)
    unknown = [value for group in config.groups for value in group if value not in labels.names]
    if unknown:
        known = ", ".join(labels.names)
        raise InputError(f"data.arrive.order: the label {config.label!r} has no value {unknown[0]!r}; it has {known}.")
    groups = config.groups or tuple((name,) for name in labels.names)
    timed = [Arrival(value, index * config.every) for index, group in enumerate(groups) for value in group]
    return tuple(arrival for arrival in timed if arrival.step < steps)


def stages(config: ArriveConfig, tokens: TokenSet, steps: int) -> list[tuple[int, np.ndarray]]:
    """(first step, indices of the documents that are there from then on) of each stage, the first at step 0."""
    labels = _labels(config, tokens)
    code_D = np.full(tokens.num_docs, -1, np.int64)
    np.maximum.at(code_D, tokens.doc, labels.codes)
    step_D = np.zeros(tokens.num_docs, np.int64)
    coming = {value for group in config.groups for value in group} or set(labels.names)
    for code, value in enumerate(labels.names):
        if value in coming:
            step_D[code_D == code] = steps  # until an arrival says otherwise: after the end
    for arrival in arrivals(config, tokens, steps):
        step_D[code_D == labels.names.index(arrival.value)] = arrival.step
    if not (step_D == 0).any():
        raise InputError(f"data.arrive: no training document has arrived at the start, for the label {config.label!r}.")
    starts = sorted({0, *step_D[step_D < steps].tolist()})
    return [(start, np.flatnonzero(step_D <= start)) for start in starts]


def _labels(config: ArriveConfig, tokens: TokenSet) -> Labels:
    labels = tokens.labels.get(config.label)
    if labels is None:
        there = ", ".join(tokens.labels) or "none"
        raise InputError(f"data.arrive.label = {config.label!r}: the data has no such label; it has {there}.")
    if labels.scope != "document":
        raise InputError(f"data.arrive.label = {config.label!r} is a label of tokens, and documents arrive whole.")
    return labels
