"""Loss against the number of experts: what fixed sets reach, and where growth ends."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moescope.errors import InputError
from moescope.sweep.folder import Plan, read_plan
from moescope.sweep.stats import Interval, interval
from moescope.sweep.table import Row, rows_of

EXPERTS, LOSS = "alive_experts", "eval_loss"
"""The metrics that a frontier is made of."""


@dataclass(frozen=True, kw_only=True)
class End:
    """One finished cell. experts: alive at the end, the mean over the MoE blocks. loss: of the last evaluation."""

    variant: str
    label: str
    seed: int
    experts: float
    loss: float
    grown: bool


@dataclass(frozen=True, kw_only=True)
class Rung:
    """The cells of one variant: mean number of experts and mean loss over seeds, each with its 95 % t-interval.

    ladder: the router and its options, which variants that differ only in the number of experts share.
    """

    variant: str
    label: str
    ladder: str
    grown: bool
    experts: Interval
    loss: Interval


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """Every finished cell, and every variant's means, fixed ones in order of their experts; `unit` is the loss's."""

    ends: tuple[End, ...]
    rungs: tuple[Rung, ...]
    unit: str
    floor: float | None


def frontier(folder: str | Path) -> Frontier:
    """Loss against experts of the sweep in `folder`, as far as its cells have finished.

    Raises `InputError` for a sweep that does not measure `alive_experts` and `eval_loss`.
    """
    plan = read_plan(folder)
    missing = [name for name in (EXPERTS, LOSS) if name not in plan.config.metrics]
    if missing:
        raise InputError(
            f"The sweep {plan.name!r} does not measure {missing[0]}, so loss cannot be set against experts."
        )
    table = rows_of(plan)
    experts, loss = _column(table, EXPERTS, "mean"), _column(table, LOSS, "")
    ends = tuple(
        End(
            variant=cell.variant,
            label=plan.label(cell.variant),
            seed=cell.seed,
            experts=experts[cell.variant, cell.seed],
            loss=loss[cell.variant, cell.seed],
            grown=cell.config.get("expansion") is not None,
        )
        for cell in plan.cells
        if (cell.variant, cell.seed) in experts and (cell.variant, cell.seed) in loss
    )
    rungs = [rung for name in plan.config.variants if (rung := _rung(plan, name, ends)) is not None]
    units = {row.unit for row in table if row.metric == LOSS}
    return Frontier(
        ends=ends,
        rungs=tuple(sorted(rungs, key=lambda rung: rung.experts.mean)),
        unit=units.pop() if len(units) == 1 else "nats",
        floor=_floor(plan),
    )


def _column(table: list[Row], metric: str, layer: str) -> dict[tuple[str, int], float]:
    return {
        (row.variant, row.seed): row.value
        for row in table
        if row.metric == metric and row.layer == layer and row.value is not None
    }


def _rung(plan: Plan, variant: str, ends: tuple[End, ...]) -> Rung | None:
    mine = [end for end in ends if end.variant == variant]
    experts, loss = interval([end.experts for end in mine]), interval([end.loss for end in mine])
    if experts is None or loss is None:
        return None
    config = next(cell.config for cell in plan.cells if cell.variant == variant)
    return Rung(
        variant=variant,
        label=mine[0].label,
        ladder=_ladder(config),
        grown=mine[0].grown,
        experts=experts,
        loss=loss,
    )


def _ladder(config: Mapping[str, Any]) -> str:
    model = config["model"]
    options = ", ".join(f"{key} = {value}" for key, value in sorted((model.get("router_config") or {}).items()))
    return f"{model['router']}{f' ({options})' if options else ''}"


def _floor(plan: Plan) -> float | None:
    """The exact least loss of the data, where a finished run knew it and all agree."""
    known = set()
    for cell in plan.cells:
        try:
            lines = (plan.run(cell) / "events.jsonl").open(encoding="utf-8")
        except OSError:
            continue
        with lines:
            first = next((line for line in lines if '"run_started"' in line), None)
        try:
            floor = json.loads(first or "")["payload"]["data"]["floor"]
            known.add(floor["nats"] if "nats" in floor else floor["squared_error"])
        except (ValueError, KeyError, TypeError):
            return None
    return known.pop() if len(known) == 1 else None
