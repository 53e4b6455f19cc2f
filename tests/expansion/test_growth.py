"""The controller: what it watches, changes and says; that nothing changes after the phase; exact resume; by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from expansion_runs import Run, differing
from moescope.config import dump, parse
from moescope.errors import InputError
from moescope.expansion import ACCEPTORS, DETECTORS, ExpansionConfig
from moescope.objectives.redundancy import Redundancy

EAGER: dict[str, dict[str, Any]] = {
    "mass": {"omega": 4, "warmup": 2, "alpha": 0.45, "c": 100.0},
    "page_hinkley": {"delta": 0.0, "lam": 0.1, "min_samples": 3},
    "conflict": {"every": 2, "window": 2, "fall": 0.9, "fewest": 2, "statistic": 0.0, "explained": 0.0},
    "coverage": {"every": 4},
    "random": {"rate": 0.4},
    "never": {},
}
JUDGES: dict[str, dict[str, Any]] = {"nll_mask": {}, "trial_then_keep": {"trial_steps": 3}, "always": {}}


def growing(detector: str = "random", acceptor: str = "always", **more: Any) -> dict[str, Any]:
    given = {"detector_config": EAGER[detector], "acceptor_config": JUDGES[acceptor]}
    return {"detector": detector, "acceptor": acceptor, **given, **more}


def routers(detector: str) -> dict[str, Any]:
    return {"router": "dynmoe"} if detector == "coverage" else {}


@pytest.mark.parametrize("detector", DETECTORS)
def test_every_detector_grows_a_model_and_tells_it(detector: str) -> None:
    run = Run(growing(detector), **routers(detector)).go()
    born = run.of("expansion")
    assert bool(born) == (detector != "never")
    alive = [set(range(2)), set(range(2))]
    for _, payload in born:
        assert payload["parent"] in alive[payload["layer"]] and payload["child"] not in alive[payload["layer"]]
        alive[payload["layer"]].add(payload["child"])
        assert payload["alive"] == len(alive[payload["layer"]])
        assert payload["loss_before"] > 0 and payload["output_change"] > 0 and 0 <= payload["selection_change"] <= 1
        assert set(payload["signals"]) and payload["detector"] == detector
    assert run.alive() == [sorted(ids) for ids in alive]
    looks = run.of("drift")
    for step, payload in looks:
        for row in payload["layers"]:
            size = len(row["experts"])
            assert len(row["fired"]) == size and all(len(values) == size for values in row["signals"].values())
            assert row["chosen"] is None or row["chosen"] in row["experts"]
        chosen = {(row["layer"], row["chosen"]) for row in payload["layers"] if row["chosen"] is not None}
        assert chosen == {(p["layer"], p["parent"]) for s, p in born if s == step}
    assert len(run.of("growth_ended")) == 1
    json.dumps([payload for _, _, payload in run.told], allow_nan=False)


def test_events_are_those_of_the_table() -> None:
    from moescope.events import EVENT_KINDS

    run = Run(growing("random", "nll_mask", prune_at_end=True, prune_tolerance=0.5)).go()
    kinds = {kind for _, kind, _ in run.told}
    assert kinds == {"drift", "expansion", "acceptance", "prune", "growth_ended"}
    for kind in kinds:
        payload = next(p for _, k, p in run.told if k == kind)
        assert all(f"`{key}`" in EVENT_KINDS[kind] or f"{key}`" in EVENT_KINDS[kind] for key in payload), kind


@pytest.mark.parametrize("acceptor", ACCEPTORS)
def test_nothing_changes_after_the_phase(acceptor: str) -> None:
    run = Run(growing("random", acceptor, phase_steps=12, prune_at_end=True), steps=30).go(12)
    assert run.of("expansion") and run.told[-1][1] == "growth_ended"
    alive, count, evaluations = run.alive(), len(run.told), run.evaluations
    state = {name: value.clone() for name, value in run.growth.tensors().items()}
    shifts = [moe.shift_E.clone() for moe in run.model.moe.values()]
    run.go()
    assert run.alive() == alive and len(run.told) == count and run.evaluations == evaluations
    assert all(torch.equal(state[n].nan_to_num(-9), v.nan_to_num(-9)) for n, v in run.growth.tensors().items())
    assert all(torch.equal(a, b.shift_E) for a, b in zip(shifts, run.model.moe.values(), strict=True))
    assert run.growth.losses(run.backward()[0]) == {}


def test_watching_begins_at_start_and_drift_is_told_every_so_often() -> None:
    run = Run({"detector": "never", "start": 3, "phase_steps": 8, "drift_every": 3}, steps=15).go()
    assert [step for step, _ in run.of("drift")] == [4, 7, 10]
    assert [(step, p["why"]) for step, p in run.of("growth_ended")] == [(11, "phase over")]


def test_growth_ends_when_all_slots_are_full_and_the_maximum_is_never_passed() -> None:
    run = Run(growing(detector_config={"rate": 1.0})).go()
    assert run.alive() == [list(range(5))] * 2
    ((step, payload),) = run.of("growth_ended")
    assert payload["why"] == "full" and step == 3 and len(run.of("expansion")) == 6
    assert [row["alive"] for row in payload["layers"]] == [5, 5]
    assert all(0 < row["used"] <= 5 for row in payload["layers"])


def test_only_the_layers_that_were_named_grow() -> None:
    run = Run(growing(detector_config={"rate": 1.0}, layers=[1])).go()
    assert run.alive() == [[0, 1], list(range(5))]
    assert {row["layer"] for _, p in run.of("drift") for row in p["layers"]} == {1}


def test_one_growth_per_layer_and_step_at_most() -> None:
    run = Run(growing(detector_config={"rate": 1.0}), num_experts=1, max_experts=9).go(4)
    born = [(step, p["layer"]) for step, p in run.of("expansion")]
    assert len(born) == len(set(born)) == 8


@pytest.mark.parametrize("acceptor", ACCEPTORS)
@pytest.mark.parametrize("detector", DETECTORS)
def test_a_restored_growth_goes_on_bit_for_bit(detector: str, acceptor: str, tmp_path: Path) -> None:
    def fresh() -> Run:
        more = {"initialiser": "clone_direction", "patience": 1, "moments": "copy"}
        return Run(growing(detector, acceptor, **more), steps=16, **routers(detector))

    whole, first, second = fresh().go(), fresh().go(9), fresh()
    save_file(first.growth.tensors(), tmp_path / "expansion.safetensors")
    (tmp_path / "expansion.json").write_text(json.dumps(first.growth.plain()))
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.masks_changed()
    second.optimizer.restore(first.optimizer.state())
    plain = json.loads((tmp_path / "expansion.json").read_text())
    second.growth.restore(load_file(tmp_path / "expansion.safetensors"), plain)
    second.done = 9
    second.go()
    assert differing(whole, second) == []
    assert whole.losses[9:] == second.losses
    assert [item for item in whole.told if item[0] > 9] == second.told
    assert whole.growth.plain() == second.growth.plain()


def test_state_of_another_run_is_refused_in_one_sentence() -> None:
    run, other = Run(growing("mass")), Run(growing("page_hinkley"))
    with pytest.raises(InputError, match="does not belong to this run"):
        other.growth.restore(run.growth.tensors(), run.growth.plain())
    with pytest.raises(InputError, match="does not belong to this run"):
        Run(growing("mass"), max_experts=4).growth.restore(run.growth.tensors(), run.growth.plain())
    with pytest.raises(InputError, match="version 7"):
        run.growth.restore(run.growth.tensors(), {**run.growth.plain(), "version": 7})


def test_pairs_feed_the_redundancy_objective_while_it_grows() -> None:
    run = Run(growing(detector_config={"rate": 1.0}, redundancy=0.5, initialiser="clone_direction")).go(1)
    records, _ = run.backward()
    assert [record.pairs for record in records] == [tuple(layer.pairs) for layer in run.growth.layers.values()]
    assert all(len(record.pairs) == 1 for record in records)
    (value,) = run.growth.losses(records).values()
    with torch.no_grad():
        wanted = 0.5 * sum(float(Redundancy()(record)) for record in records)
    value = value.detach()
    assert float(value) == pytest.approx(wanted)
    assert float(value) > 0.1
    layer = run.growth.layers[0]
    run.growth.retire(0, layer.pairs[0][1], 1)
    assert layer.pairs == []


def test_a_run_without_expansion_costs_nothing_and_can_be_split_by_hand() -> None:
    run = Run(dump(ExpansionConfig.by_hand())).go(3)
    assert not run.told and not run.evaluations
    records, _ = run.backward()
    assert run.growth.records(records) == tuple(records) and run.growth.losses(records) == {}
    ((kind, payload),) = run.growth.split(1, 0, 3)
    assert (kind, payload["why"], payload["detector"], payload["child"]) == ("expansion", "by hand", None, 2)
    assert run.alive() == [[0, 1], [0, 1, 2]]
    ((kind, payload),) = run.growth.retire(1, 0, 3)
    assert (kind, payload["why"], payload["expert"], payload["alive"]) == ("prune", "by hand", 0, 2)
    assert payload["loss_after"] == run.evaluate(), "what was measured is what was done"
    run.go(3)
    assert run.alive() == [[0, 1], [1, 2]]


def test_orders_that_cannot_be_carried_out_say_why_and_change_nothing() -> None:
    run = Run(dump(ExpansionConfig.by_hand()), max_experts=2)
    before = {name: value.clone() for name, value in run.tensors()}
    for call, text in (
        (lambda: run.growth.split(0, 0, 0), "no free slot"),
        (lambda: run.growth.split(7, 0, 0), "Block 7 has no experts"),
        (lambda: run.growth.split(0, 4, 0), "no living expert 4"),
        (lambda: run.growth.retire(1, -1, 0), "no living expert -1"),
    ):
        with pytest.raises(InputError, match=text):
            call()
    assert all(torch.equal(before[name], value) for name, value in run.tensors())
    run.growth.retire(0, 0, 0)
    with pytest.raises(InputError, match="the last one"):
        run.growth.retire(0, 1, 0)
    hashed = Run(dump(ExpansionConfig.by_hand()), router="hash")
    with pytest.raises(InputError, match="'hash' has no row per expert"):
        hashed.growth.split(0, 0, 0)


def test_pruning_at_the_end_removes_whom_the_held_out_loss_does_not_miss() -> None:
    more = {"prune_at_end": True, "prune_tolerance": 0.02}
    run = Run(growing(phase_steps=14, **more), steps=16).go(13)
    born = sum(map(len, run.alive()))
    assert not run.of("prune", "growth_ended") and born > 6
    run.go(1)
    pruned = [p for step, p in run.of("prune") if step == 14]
    assert pruned and all(p["why"] == "end of growth" for p in pruned)
    assert (
        sum(map(len, run.alive())) == born - len(pruned) == run.told[-1][2]["layers"][0]["alive"] + len(run.alive()[1])
    )
    assert pruned[-1]["loss_after"] == run.evaluate() <= pruned[0]["loss_before"] * 1.02
    assert min(p["loss_after"] for p in pruned) > 0


def test_at_least_one_expert_is_left_whatever_pruning_may_cost() -> None:
    run = Run(growing(phase_steps=6, prune_at_end=True, prune_tolerance=1e6), steps=8).go()
    assert [len(ids) for ids in run.alive()] == [1, 1]


def test_only_the_layers_that_were_named_are_pruned() -> None:
    run = Run(growing(phase_steps=6, prune_at_end=True, prune_tolerance=1e6, layers=[1]), steps=8).go()
    assert [len(ids) for ids in run.alive()] == [2, 1]


def test_pruning_is_not_stopped_by_rounding() -> None:
    run = Run({"detector": "never", "phase_steps": 1, "prune_at_end": True}, steps=2)
    run.growth.held.evaluate = lambda: 1 + 2.0**-22 * (4 - sum(map(len, run.alive())))
    assert [len(ids) for ids in run.go().alive()] == [1, 1]


def test_equal_seeds_grow_alike_and_others_do_not() -> None:
    one, two, three = (Run(growing(), seed=seed).go() for seed in (0, 0, 1))
    assert one.told == two.told and differing(one, two) == []
    assert [p for _, p in one.of("expansion")] != [p for _, p in three.of("expansion")]


def test_evaluations_leave_gradients_and_training_mode_as_they_were() -> None:
    run = Run(growing(detector_config={"rate": 1.0}))
    records, main = run.backward()
    shared = [w.grad.clone() for n, w in run.model.named_parameters() if ".moe." not in n and w.grad is not None]
    run.growth.after_backward(0, records, main)
    after = [w.grad for n, w in run.model.named_parameters() if ".moe." not in n and w.grad is not None]
    assert run.model.training and all(torch.equal(a, b) for a, b in zip(shared, after, strict=True))


def test_records_of_the_pass_still_say_who_was_alive_then() -> None:
    run = Run(growing(detector_config={"rate": 1.0}))
    records, main = run.backward()
    run.growth.after_backward(0, records, main)
    assert [record.alive_E.sum().item() for record in records] == [2, 2]
    assert [len(ids) for ids in run.alive()] == [3, 3]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"detector": "nope"}, "there are mass, conflict"),
        ({"acceptor": "nope"}, "there are nll_mask"),
        ({"initialiser": "nope"}, "there are clone"),
        ({"detector_config": {"omega": 1}}, "omega"),
        ({"detector_config": {"lam": 1}}, "lam"),
        ({"phase": 0}, "phase"),
        ({"phase_steps": -1}, "phase_steps"),
        ({"layers": []}, "layers"),
        ({"layers": [1, 1]}, "layers"),
        ({"patience": 0}, "patience"),
        ({"drift_every": 0}, "drift_every"),
        ({"redundancy": -1}, "redundancy"),
    ],
)
def test_bad_configurations_are_refused(values: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        parse(ExpansionConfig, values)


def test_masking_and_unmasking_restores_the_loss_exactly() -> None:
    run = Run(growing()).go(8)
    before = run.evaluate()
    slots = run.growth.layers[0].slots
    mask = slots.layer.alive_E
    for slot in slots.alive():
        assert run.growth.held.without(slots, slot) != before
        assert slots.layer.alive_E is mask and run.evaluate() == before


def test_of_two_growths_in_one_step_the_second_starts_from_the_loss_after_the_first() -> None:
    run = Run(
        growing(detector_config={"rate": 1.0}, initialiser="clone_direction"), router="topk_softmax", num_experts=3
    )
    alone = Run(dump(ExpansionConfig.by_hand()), router="topk_softmax", num_experts=3)
    records, main = run.backward()
    first, second = (p for kind, p in run.growth.after_backward(0, records, main) if kind == "expansion")
    assert first["loss_before"] == alone.evaluate() != second["loss_before"]
    seconds = run.growth.layers[second["layer"]].slots
    with seconds.masked(second["child"]):
        seconds.put_back(second["parent"], alone.growth.layers[second["layer"]].slots.keep(second["parent"]))
        assert run.evaluate() == second["loss_before"]


def test_detectors_and_acceptors_hear_of_every_change_by_hand_too() -> None:
    run = Run(growing("mass", "trial_then_keep", phase=1.0)).go(5)
    layer = run.growth.layers[0]
    assert int(layer.detector.state()["count"][0]) == 5
    run.growth.split(0, 0, 5)
    assert layer.detector.state()["count"].tolist() == [0, 5, 0, 0, 0]
    layer.acceptor.began(5, 0, 2, 1.0)
    run.growth.retire(0, 1, 5)
    assert layer.detector.state()["count"].tolist() == [0, 0, 0, 0, 0] and layer.acceptor.busy()
    run.growth.retire(0, 2, 5)
    assert not layer.acceptor.busy()
