"""Loss against experts: every finished cell once, fixed sets in ladders, grown ones apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moescope.errors import InputError
from moescope.figures import FIGURES
from moescope.sweep.frontiers import frontier
from moescope.sweep.stats import interval

LOSSES = {"few": {0: 2.0, 1: 2.2}, "many": {0: 1.5, 1: 1.3}, "wide": {0: 1.4, 1: 1.6}, "grown": {0: 1.2, 1: 1.0}}
EXPERTS = {"few": {0: 2, 1: 2}, "many": {0: 8, 1: 8}, "wide": {0: 8, 1: 8}, "grown": {0: 5, 1: 7}}


def model(k: int) -> dict[str, Any]:
    return {"router": "topk_softmax", "router_config": {"k": k}}


def made(folder: Path, metrics: tuple[str, ...] = ("eval_loss", "alive_experts"), floor: Any = 0.5) -> Path:
    configs = {
        "few": {"model": model(1)},
        "many": {"model": model(1)},
        "wide": {"model": model(2)},
        "grown": {"model": model(1), "expansion": {"detector": "mass"}},
    }
    cells = [
        {"name": f"{name}-s{seed}", "variant": name, "seed": seed, "config": {**config, "optim": {"steps": 1}}}
        for seed in (0, 1)
        for name, config in configs.items()
    ]
    sweep = {"base": {}, "seeds": [0, 1], "metrics": list(metrics), "variants": {name: {} for name in configs}}
    plan = {"version": 1, "name": "toy", "sweep": sweep, "set": {}, "cells": cells, "notes": [], "leaky": []}
    folder.mkdir(exist_ok=True)
    (folder / "sweep.json").write_text(json.dumps(plan))
    for cell in cells:
        run = folder / "cells" / str(cell["name"])
        run.mkdir(parents=True)
        name, seed = str(cell["variant"]), int(str(cell["seed"]))
        values = [
            {"metric": "eval_loss", "layer": "", "value": LOSSES[name][seed], "unit": "nats", "n": 9, "null": None},
            *(
                {"metric": "alive_experts", "layer": layer, "value": value, "unit": "experts", "n": None, "null": None}
                for layer, value in (("0", 100.0), ("mean", EXPERTS[name][seed]))
            ),
        ]
        (run / "cell.json").write_text(json.dumps({"status": "finished", "error": None, "values": values, "facts": {}}))
        told = {"data": {"floor": None if floor is None else {"nats": floor}}}
        event = {"run": cell["name"], "step": 0, "kind": "run_started", "payload": told, "time": 0.0}
        (run / "events.jsonl").write_text(json.dumps(event) + "\n")
    return folder


def test_every_finished_cell_is_an_end_and_every_variant_a_rung(tmp_path: Path) -> None:
    found = frontier(made(tmp_path / "toy"))
    assert {(end.variant, end.seed): (end.experts, end.loss) for end in found.ends} == {
        (name, seed): (EXPERTS[name][seed], LOSSES[name][seed]) for name in LOSSES for seed in (0, 1)
    }
    assert [rung.variant for rung in found.rungs if not rung.grown] == ["few", "many", "wide"]
    grown = next(rung for rung in found.rungs if rung.grown)
    assert (grown.variant, grown.experts, grown.loss) == ("grown", interval([5, 7]), interval([1.2, 1.0]))
    ladders = {rung.variant: rung.ladder for rung in found.rungs}
    assert ladders["few"] == ladders["many"] != ladders["wide"]
    assert (found.unit, found.floor) == ("nats", 0.5)


def test_an_unfinished_cell_is_left_out(tmp_path: Path) -> None:
    folder = made(tmp_path / "toy", floor=None)
    (folder / "cells" / "few-s1" / "cell.json").unlink()
    found = frontier(folder)
    few = next(rung for rung in found.rungs if rung.variant == "few")
    assert (few.loss.n, few.loss.low, found.floor) == (1, None, None)


def test_a_sweep_that_counts_no_experts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="alive_experts"):
        frontier(made(tmp_path / "toy", metrics=("eval_loss",)))


def test_the_figure_draws_ladders_their_mean_and_every_grown_run(tmp_path: Path) -> None:
    found = frontier(made(tmp_path / "toy"))
    drawn = FIGURES["frontier"](found.rungs, found.ends, unit=found.unit, floor=found.floor)
    by_name = {trace.name: trace for trace in drawn.data}
    assert list(by_name["fixed: topk_softmax (k = 1)"].x) == [2, 8]
    assert list(by_name["fixed: topk_softmax (k = 1)"].y) == pytest.approx([2.1, 1.4])
    assert list(by_name["fixed: mean of the grid"].y) == pytest.approx([2.1, 1.45])
    assert sorted(by_name["grown: each run"].x) == [5, 7]
    star = by_name["grown"]
    assert (list(star.x), list(star.y)) == ([6], [pytest.approx(1.1)])
    spread = interval([1.2, 1.0])
    assert spread is not None and spread.high is not None
    assert star.error_y.array[0] == pytest.approx(spread.high - spread.mean)
    assert drawn.layout.shapes[0].y0 == 0.5
    assert "n = 2 seeds" in drawn.layout.meta["caption"]


def test_nothing_finished_is_said() -> None:
    assert "No variant has a finished run" in FIGURES["frontier"]([], []).layout.meta["caption"]
