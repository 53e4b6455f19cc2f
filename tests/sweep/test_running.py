"""A sweep on the CPU: the whole table, the same one after any interruption; failures stay with their cell."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from moescope.errors import InputError
from moescope.events import Event
from moescope.sweep import SweepFile, rows, run_sweep, state, summary
from moescope.sweep.folder import held
from moescope.sweep.log import read_events
from moescope.trace.io import read_trace

Toy = Callable[..., SweepFile]


def after(calls: int) -> Callable[[], bool]:
    """A `stop` that says yes from the given call on."""
    count = itertools.count(1)
    return lambda: next(count) >= calls


def losses(events: list[Event]) -> dict[int, float]:
    return {event.step: event.payload["loss"] for event in events if event.kind == "train"}


def test_every_cell_gives_every_metric(toy: Toy, folder: Path) -> None:
    ended = run_sweep(toy(), folder)
    assert ended.status == "finished" and [cell.status for cell in ended.cells] == ["finished"] * 4
    table = rows(folder)
    layers = {metric: [row.layer for row in table if row.metric == metric] for metric in {r.metric for r in table}}
    assert layers["eval_loss"] == [""] * 4 and layers["maxvio"] == ["0", "1", "mean"] * 4
    assert layers["mutual_information.corrected:cluster"] == ["0", "1", "mean"] * 4
    with (folder / "table.csv").open() as file:
        read = list(csv.DictReader(file))
    assert [row["value"] for row in read] == [str(row.value) for row in table]
    mean = [float(row["value"]) for row in read if row["metric"] == "maxvio" and row["layer"] == "mean"]
    blocks = [float(row["value"]) for row in read if row["metric"] == "maxvio" and row["layer"] in "01"]
    assert mean == pytest.approx([(a + b) / 2 for a, b in zip(blocks[::2], blocks[1::2], strict=True)])
    told = json.loads((folder / "summary.json").read_text())
    assert told == json.loads(json.dumps(asdict(summary(folder)))) and told["status"] == "finished"


def test_values_are_those_of_the_run_alone(toy: Toy, folder: Path, tmp_path: Path) -> None:
    """Cells do not disturb one another: the same configuration trained by itself ends with the same loss."""
    from moescope.train.config import parse_run_config
    from moescope.train.loop import train

    run_sweep(toy(), folder)
    plan = json.loads((folder / "sweep.json").read_text())
    last = plan["cells"][-1]
    alone = list(train(parse_run_config(last["config"]), tmp_path / "alone"))
    loss = next(row.value for row in rows(folder) if (row.variant, row.seed, row.metric) == ("one", 1, "eval_loss"))
    assert alone[-1].payload["eval_loss"] == loss


def test_a_stopped_sweep_goes_on_to_the_same_table(toy: Toy, folder: Path, tmp_path: Path) -> None:
    run_sweep(toy(), tmp_path / "whole")
    stopped = 0
    for calls in (6, 9, 25, 10_000):  # in the first cell, again in it, in a later one
        ended = run_sweep(toy(), folder, stop=after(calls))
        stopped += ended.status == "stopped"
    assert stopped == 3 and ended.status == "finished"
    assert (folder / "table.csv").read_bytes() == (tmp_path / "whole" / "table.csv").read_bytes()
    for cell in ended.cells:
        here, there = (read_events(root / "cells" / cell.name) for root in (folder, tmp_path / "whole"))
        train = [
            [(event.step, event.payload["loss"]) for event in log if event.kind == "train"] for log in (here, there)
        ]
        assert train[0] == train[1] and [step for step, _ in train[0]] == [1, 2, 3, 4, 5, 6]


def test_a_torn_line_and_steps_done_twice_count_once(toy: Toy, folder: Path, tmp_path: Path) -> None:
    """What a kill leaves: a checkpoint, events of later steps, half a line."""
    run_sweep(toy(), tmp_path / "whole")
    ended = run_sweep(toy(), folder, stop=after(8))
    run = folder / "cells" / next(cell.name for cell in ended.cells if cell.status == "stopped")
    last = read_events(run)[-1]
    with (run / "events.jsonl").open("a") as file:
        file.write(
            json.dumps({"run": run.name, "step": last.step + 1, "kind": "train", "payload": {}, "time": 0}) + "\n"
        )
        file.write('{"run": "two-s0", "st')
    assert run_sweep(toy(), folder).status == "finished"
    assert (folder / "table.csv").read_bytes() == (tmp_path / "whole" / "table.csv").read_bytes()
    steps = [event.step for event in read_events(run) if event.kind == "train"]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_finished_cells_are_not_trained_again(toy: Toy, folder: Path) -> None:
    run_sweep(toy(), folder)
    before = {path: path.stat().st_mtime_ns for path in folder.glob("cells/*/*")}
    stages: list[str] = []
    assert run_sweep(toy(), folder, report=lambda step: stages.append(step.stage)).status == "finished"
    assert stages == [] and before == {path: path.stat().st_mtime_ns for path in folder.glob("cells/*/*")}


def test_a_failed_cell_is_written_down_and_the_others_go_on(toy: Toy, folder: Path) -> None:
    variants = {"bad": {"data.spec": "no/such/file.txt"}, "good": {}}
    told = run_sweep(toy(variants), folder)
    assert [cell.status for cell in told.cells] == ["failed", "finished"] * 2 and told.status == "finished"
    assert told.cells[0].error and "no/such/file.txt" in told.cells[0].error
    found = summary(folder)
    assert [variant.seeds for variant in found.variants] == [(), (0, 1)]
    assert {mean.variant for mean in found.means} == {"good"}
    assert any(note.startswith("bad-s0 failed: ") for note in found.notes)
    assert any("2 of 4 cells" in note for note in found.notes)


def test_a_folder_of_other_settings_is_refused(toy: Toy, folder: Path) -> None:
    run_sweep(toy(), folder)
    before = (folder / "sweep.json").read_bytes()
    with pytest.raises(InputError, match=r"optim.steps is 6 there and 9 here"):
        run_sweep(toy(), folder, set={"optim.steps": 9})
    with pytest.raises(InputError, match="seeds"):
        run_sweep(toy(), folder, seeds=[0, 1, 2])
    with pytest.raises(InputError, match="metrics"):
        run_sweep(toy(metrics=["eval_loss"]), folder)
    assert (folder / "sweep.json").read_bytes() == before
    assert run_sweep(toy(title="Words may change"), folder).title == "Words may change"
    other = folder.with_name("other")
    other.mkdir()
    (other / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        run_sweep(toy(), other)
    assert [path.name for path in other.iterdir()] == ["mine.txt"]


def test_one_process_at_a_time(toy: Toy, folder: Path) -> None:
    with held(folder / ".lock", "no"), pytest.raises(InputError, match="Another process"):
        run_sweep(toy(), folder)
    assert not (folder / "sweep.json").exists()


def test_unequal_active_parameters_are_marked_not_hidden(toy: Toy, folder: Path) -> None:
    run_sweep(toy({"two": {}, "three": {"model.router_config": {"k": 3}}, "again": {}}), folder, seeds=[5])
    told = summary(folder)
    assert [variant.equal_active for variant in told.variants] == [True, False, True]
    two, three, _ = (variant.active_params for variant in told.variants)
    assert two is not None and three is not None
    assert three - two == 2 * 3 * 8 * 8  # two blocks, one more SwiGLU expert of 8 x 8 each
    assert told.variants[1].active_ratio == pytest.approx(three / two)
    assert any("three does not use the active parameters of two" in note for note in told.notes)
    assert {row.metric for row in rows(folder)} > {"active_params", "active_params_train", "router_params"}


def test_a_metric_that_no_cell_has_is_said(toy: Toy, folder: Path) -> None:
    metrics = ["eval_loss", "mutual_information:nothing", "evals.nothing", "objectives.load_balance", "eval_loss@3"]
    run_sweep(toy({"two": {}}, metrics=metrics), folder, seeds=[0])
    missing = [note for note in summary(folder).notes if note.startswith("No cell")]
    assert missing == [f"No cell has a value of {metric}." for metric in metrics[1:4]]


def test_an_objective_is_measured_without_its_coefficient_even_if_only_watched(toy: Toy, folder: Path) -> None:
    """A balance loss is at least 1 in each of the two blocks, whatever it is multiplied by."""
    variants = {
        "trained": {"objectives.load_balance": {"coefficient": 0.1, "calibrate": True}},
        "watched": {"objectives.load_balance": 1e-9},
    }
    run_sweep(toy(variants, metrics=["objectives.load_balance", "train_loss_mean"]), folder, seeds=[0])
    found = {row.variant: row.value for row in rows(folder) if row.metric == "objectives.load_balance"}
    events = read_events(folder / "cells" / "trained-s0")
    last = [event.payload["objectives"]["load_balance"] for event in events if event.kind == "train"][-1]
    assert found["trained"] == pytest.approx(last / 0.1)
    assert found["watched"] is not None and 2 <= found["watched"] < 8 and found["watched"] != found["trained"]


def test_soft_slots_are_counted_as_what_experts_compute(toy: Toy, folder: Path) -> None:
    """Each token mixes into every expert, and each expert computes only its slots."""
    settings = {
        "model.router": "soft",
        "model.router_config": {"slots_per_expert": 1},
        "data.spec": "digits",
        "model.input": "patches",
    }
    variants = {"soft": {**settings, "model.max_seq": 16}}
    run_sweep(toy(variants, metrics=["experts_per_token"]), folder, seeds=[0], set={"data.tokens": 3200})
    found = {row.layer: row.value for row in rows(folder) if row.metric == "experts_per_token"}
    assert found == {"0": 4 / 16, "1": 4 / 16, "mean": 4 / 16}


def test_cells_in_processes_of_their_own_give_the_same_table(toy: Toy, folder: Path, tmp_path: Path) -> None:
    sweep = toy({"two": {}, "bad": {"data.spec": "no/such/file.txt"}, "one": {"model.router": "switch"}})
    run_sweep(sweep, tmp_path / "here", seeds=[0])
    told = run_sweep(sweep, folder, seeds=[0], parallel=2)
    assert [cell.status for cell in told.cells] == ["finished", "failed", "finished"]
    assert (folder / "table.csv").read_bytes() == (tmp_path / "here" / "table.csv").read_bytes()


def test_a_process_that_dies_takes_only_its_cell_with_it(
    toy: Toy, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dies = tmp_path / "dies"
    dies.write_text("#!/bin/sh\nread cell\necho out of luck >&2\nexit 7\n")
    dies.chmod(0o755)
    monkeypatch.setattr("moescope.sweep.worker.sys.executable", str(dies))
    told = run_sweep(toy(), folder, parallel=2)
    assert told.status == "finished" and {cell.status for cell in told.cells} == {"failed"}
    assert {cell.error for cell in told.cells} == {
        "Its process ended with exit code 7; its last line was 'out of luck'."
    }


def test_the_state_says_how_far_it_is(toy: Toy, folder: Path) -> None:
    seen: list[tuple[str, str, int]] = []

    def look(step: object) -> None:
        now = state(folder)
        seen.append((now.status, now.cells[0].status, now.cells[0].step))

    run_sweep(toy(), folder, stop=lambda: bool(seen) and seen[-1][2] >= 3, report=look)
    assert seen[-1] == ("running", "running", 3)
    now = state(folder)
    assert now.status == "stopped" and now.cells[0].status == "stopped" and now.cells[1].status == "waiting"
    with pytest.raises(InputError, match="holds no sweep"):
        state(folder.with_name("nowhere"))


def test_experts_alive_and_experts_used(toy: Toy, folder: Path) -> None:
    """Slots that were never allocated are not alive; an expert that the probe leaves out is alive and not used."""
    sizes = {"model.num_experts": 6, "model.max_experts": 8, "probe.tokens": 2, "probe.sample": 0}
    ended = run_sweep(toy({"few": sizes}, metrics=["alive_experts", "used_experts"]), folder, seeds=[0])
    snapshots = folder / "cells" / ended.cells[0].name / "snapshots"
    trace = read_trace(max(snapshots.glob("*.safetensors")))
    found = {(row.metric, row.layer): row.value for row in rows(folder)}
    used = {id: len(set(layer.expert_TK[layer.wanted_TK].tolist())) for id, layer in trace.layers.items()}
    assert {id: found["alive_experts", str(id)] for id in trace.layers} == dict.fromkeys(trace.layers, 6)
    assert {id: found["used_experts", str(id)] for id in trace.layers} == used
    assert min(used.values()) < 6
