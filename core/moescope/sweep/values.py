"""What is taken from a finished cell: from its events, its last trace and its size, as tidy values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any, Final

import numpy as np

from moescope.events import Event, loss_unit
from moescope.metrics import METRICS, Measurement, alive_experts, measure
from moescope.sweep.active import Sizes, sizes, slot_rows_per_token
from moescope.sweep.names import MEAN, PLAIN, MetricName
from moescope.trace.io import read_trace
from moescope.trace.schema import Trace


@dataclass(frozen=True, kw_only=True)
class Value:
    """One number of one cell. layer: a block's index, "mean" over them, or "" for what the whole cell has.

    value: None where there is not enough data. n: the tokens that it rests on. null: what chance would give.
    """

    metric: str
    layer: str
    value: float | None
    unit: str
    n: int | None = None
    null: float | None = None


class Finished:
    """A cell that is done: its events, its configuration and, once asked for, its last trace."""

    def __init__(self, run: Path, events: Sequence[Event], leaky: bool) -> None:
        self.leaky = leaky
        self.started = next(event for event in events if event.kind == "run_started").payload
        self.train = [event for event in events if event.kind == "train"]
        calibration = [event.payload["objectives"] for event in events if event.kind == "calibration"]
        self.calibration: Mapping[str, Any] = calibration[0] if calibration else {}
        self.loads = [event.payload for event in events if event.kind == "load"]
        self.evals = {event.step: event.payload for event in events if event.kind == "eval"}
        self.ended = next(event for event in reversed(events) if event.kind == "run_finished")
        snapshot = max((event for event in events if event.kind == "snapshot"), key=lambda event: event.step)
        self.trace: Trace = read_trace(run / str(snapshot.payload["path"]))
        self.sizes: Sizes = sizes(self.started["config"]["model"])
        self.rows = self._slot_rows()
        self.experts_eval = self._experts_eval()
        self.experts_train = self._experts_train()

    @property
    def last_eval(self) -> Mapping[str, Any]:
        return self.evals[max(self.evals)]

    def _slot_rows(self) -> dict[int, float]:
        """Only a router whose every token wants every expert may be one that mixes tokens into slots."""
        layers = self.trace.layers.values()
        if not any(layer.wanted_TK.sum(axis=1).min() == layer.meta.num_experts > 1 for layer in layers):
            return {}
        config = self.started["config"]
        text = config["model"]["input"] == "tokens"
        return slot_rows_per_token(config["model"], config["optim"]["seq"] if text else config["model"]["max_seq"])

    def _experts_eval(self) -> dict[int, float]:
        counted = {id: float((layer.sent_TK & layer.wanted_TK).sum(axis=1).mean()) for id, layer in self._layers()}
        return {**counted, **self.rows}

    def _experts_train(self) -> dict[int, float]:
        told: dict[int, list[float]] = {}
        for load in self.loads:
            for layer in load["layers"]:
                told.setdefault(layer["layer"], []).append(layer["experts_per_token"] * (1 - layer["dropped"]))
        return {**{layer: fmean(values) for layer, values in told.items()}, **self.rows}

    def counted(self, name: str) -> Mapping[int, float]:
        """Of each MoE block: experts per token, on the probe or in training; experts alive at the end, or used there.

        One is used that takes at least 1 % of an even share of the probe's wanted assignments.
        """
        if name.startswith("experts_per_token"):
            return self.experts_train if name.endswith("train") else self.experts_eval
        if name == "alive_experts":
            return {id: float(len(alive_experts(layer))) for id, layer in self._layers()}
        made = {}
        for id, layer in self._layers():
            counts_E = np.bincount(layer.expert_TK[layer.wanted_TK])
            made[id] = float(np.count_nonzero(counts_E >= 0.01 * counts_E.sum() / max(len(alive_experts(layer)), 1)))
        return made

    def _layers(self) -> Iterable[tuple[int, Any]]:
        return self.trace.layers.items()

    def facts(self) -> dict[str, Any]:
        """What is told of every cell, whatever is measured."""
        told = {key: self.started[key] for key in ("device", "precision", "threads")}
        train = self.experts_train
        return {
            "params": self.sizes.params,
            "router_params": self.sizes.router_params,
            "active_params": self.sizes.active(self.experts_eval),
            "active_params_train": self.sizes.active(train) if train else None,
            "leaky": self.leaky,
            "fingerprint": self.started["data"]["fingerprint"],
            "seconds": self.ended.payload["seconds"],
            **told,
        }


def values(cell: Finished, metrics: Sequence[str]) -> list[Value]:
    """Every metric of a finished cell, in order."""
    names = [MetricName.parse(metric) for metric in metrics]
    measured = _measured(cell.trace, names)
    found: list[Value] = []
    for name in names:
        found.extend(_of_trace(name, measured) if name.source == "trace" else _READ[name.source](name, cell))
    return found


def _of_eval(name: MetricName, cell: Finished) -> list[Value]:
    payload = cell.last_eval if name.step is None else cell.evals.get(name.step, {})
    if name.eval is not None:
        payload = payload.get("evals", {}).get(name.eval, {})
    accuracy = name.part == "accuracy" or name.name == "eval_accuracy"
    found, unit = (
        payload.get("accuracy" if accuracy else "loss"),
        "share" if accuracy else loss_unit(cell.started["config"]),
    )
    if name.name == "perplexity":
        found, unit = None if found is None else math.exp(found), ""
    if name.part == "excess" and found is not None:
        found = payload.get("kept", found) - payload["clean"]
    return [_value(name, found, unit, payload.get("tokens"))]


def _of_train(name: MetricName, cell: Finished) -> list[Value]:
    if name.objective is not None:
        return [_value(name, _of_objective(name.objective, cell), "")]
    events, unit = cell.train, PLAIN[name.name][1]
    if name.name == "tokens":
        return [_value(name, events[-1].payload["tokens"] if events else None, unit)]
    if name.name == "seconds_per_step":
        pairs = pairwise(events)
        paces = [(b.payload["seconds"] - a.payload["seconds"]) / (b.step - a.step) for a, b in pairs]
        return [_value(name, median(paces) if paces else None, unit)]
    chosen = events if name.name == "train_loss_mean" else _last_tenth(events)
    mean = fmean(event.payload["loss"] for event in chosen) if chosen else None
    return [_value(name, mean, loss_unit(cell.started["config"]))]


def _last_tenth(events: Sequence[Event]) -> Sequence[Event]:
    return events[-max(1, len(events) // 10) :]


def _of_objective(name: str, cell: Finished) -> float | None:
    """An objective without its coefficient, summed over blocks: its mean over the last tenth of the logged steps.

    One that is only watched has a coefficient too small to matter; of one that is 0, nothing is known.
    """
    known = cell.calibration.get(name, {}).get("effective")
    told = [event.payload["objectives"][name] for event in _last_tenth(cell.train) if known]
    return fmean(told) / known if told else None


def _of_size(name: MetricName, cell: Finished) -> list[Value]:
    return [_value(name, cell.facts()[name.name], PLAIN[name.name][1])]


def _of_layers(name: MetricName, cell: Finished) -> list[Value]:
    used = cell.counted(name.name)
    tokens = None if name.name.endswith("train") else cell.trace.num_tokens
    made = [_value(name, value, PLAIN[name.name][1], tokens, str(layer)) for layer, value in used.items()]
    return _with_mean(made) or [_value(name, None, PLAIN[name.name][1], layer=MEAN)]


_READ: Final = {"eval": _of_eval, "train": _of_train, "size": _of_size, "layers": _of_layers}


def _measured(trace: Trace, names: Sequence[MetricName]) -> list[Measurement]:
    wanted = list(dict.fromkeys(name.name for name in names if name.source == "trace"))
    return measure(trace, wanted, bootstrap=0) if wanted else []


def _of_trace(name: MetricName, measured: Sequence[Measurement]) -> list[Value]:
    """A measure of every block and its mean; without a label, of every label that the measure is about."""
    here = [item for item in measured if item.metric == name.name and name.label in (None, item.label)]
    made: list[Value] = []
    for label in dict.fromkeys(item.label for item in here):
        text = name.text if name.label is not None or label is None else f"{name.text}:{label}"
        made.extend(_with_mean([_one(name, text, item) for item in here if item.label == label]))
    return made or [_value(name, None, METRICS[name.name].unit, layer=MEAN)]


def _one(name: MetricName, text: str, item: Measurement) -> Value:
    value, null, unit = item.value, item.null, item.unit
    if name.detail is not None:
        found = item.detail.get(name.detail)
        value = float(found) if isinstance(found, int | float) else None
        null = 0.0 if name.detail in ("corrected", "adjusted") else None
        unit = unit if name.detail == "corrected" else ""
    return Value(metric=text, layer=str(item.layer), value=_finite(value), unit=unit, n=item.n, null=null)


def _with_mean(blocks: Sequence[Value]) -> list[Value]:
    """The blocks, and their mean where each has a value."""
    if not blocks:
        return []
    first, numbers = blocks[0], [block.value for block in blocks]
    nulls = [block.null for block in blocks]
    mean = Value(
        metric=first.metric,
        layer=MEAN,
        value=None if None in numbers else fmean(number for number in numbers if number is not None),
        unit=first.unit,
        n=first.n,
        null=None if None in nulls else fmean(null for null in nulls if null is not None),
    )
    return [*blocks, mean]


def _value(name: MetricName, value: float | None, unit: str, n: int | None = None, layer: str = "") -> Value:
    return Value(metric=name.text, layer=layer, value=_finite(value), unit=unit, n=n)


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
