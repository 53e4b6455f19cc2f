"""What stays: laws of every acceptor in the registry, and of each on its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from expansion_runs import Run
from moescope.config import parse
from moescope.expansion import ACCEPTORS
from moescope.expansion.base import Acceptor, Measure

OFTEN: dict[str, Any] = {"detector": "random", "detector_config": {"rate": 0.5}}


def build(name: str, patience: int = 2, **options: Any) -> Acceptor:
    kind = ACCEPTORS[name]
    return kind(parse(kind.Config, options), 6, patience)


def measure(now: float, without: Mapping[int, float] | None = None) -> Measure:
    def never() -> float:
        raise AssertionError("nothing is asked, so nothing is measured")

    lost = without or {}
    return Measure(now=(lambda: now) if now else never, without=lost.__getitem__)


@pytest.mark.parametrize("name", ACCEPTORS)
def test_a_restored_acceptor_goes_on_as_it_would_have(name: str) -> None:
    def drive(acceptor: Acceptor, first: int, last: int) -> list[Any]:
        said: list[Any] = []
        for step in range(first, last):
            if step % 4 == 0 and not acceptor.busy():
                said.append(acceptor.before_growth(step, measure(1.0, {e: 0.9 + 0.1 * (e % 3) for e in range(6)})))
                acceptor.grown(0, step % 6)
                acceptor.began(step, 0, step % 6, 1.0)
            said.append(acceptor.after_step(step + 1, measure(0.9 if step % 3 else 1.2)))
            said.append(acceptor.busy())
        return said

    options = {"trial_steps": 3} if name == "trial_then_keep" else {}
    whole, first, second = (build(name, 50, **options) for _ in range(3))
    said = drive(whole, 0, 30)
    drive(first, 0, 14)
    second.restore({key: value.clone() for key, value in first.state().items()})
    assert drive(second, 14, 30) == said[-len(drive(first, 14, 30)) :]
    judged = [item for item in said if item not in (None, True, False)]
    assert name == "always" or {item.kept for item in judged} == {True, False}


def test_always_asks_for_nothing() -> None:
    acceptor = build("always")
    acceptor.began(0, 0, 1, 1.0)
    assert acceptor.before_growth(5, measure(0)) is None and acceptor.after_step(5, measure(0)) is None
    assert not acceptor.busy() and not acceptor.state()


# nll_mask


def test_the_expert_added_last_is_judged_at_the_second_growth_and_no_harm_removes_it() -> None:
    acceptor = build("nll_mask")
    assert acceptor.before_growth(3, measure(0)) is None, "the first growth judges nothing"
    acceptor.began(3, 0, 2, 1.0)
    kept = acceptor.before_growth(9, measure(1.0, {2: 1.01}))
    assert kept is not None and kept.kept and (kept.parent, kept.child, kept.patience) == (0, 2, 2)
    assert (kept.loss_before, kept.loss_after) == (1.01, 1.0) and not kept.give_up
    acceptor.began(9, 1, 3, 1.0)
    for left, child in ((1, 3), (0, 4)):
        lost = acceptor.before_growth(12, measure(1.0, {child: 1.0}))
        assert lost is not None and not lost.kept and lost.patience == left and lost.give_up == (left == 0)
        acceptor.began(12, 1, 4, 1.0)


def test_an_expert_that_is_gone_already_is_not_judged() -> None:
    acceptor = build("nll_mask")
    acceptor.began(3, 0, 2, 1.0)
    acceptor.retired(1)
    acceptor.retired(2)
    assert acceptor.before_growth(9, measure(0)) is None


def test_tolerance_is_what_masking_may_cost() -> None:
    for cost, kept in ((1.009, False), (1.011, True)):
        acceptor = build("nll_mask", tolerance=0.01)
        acceptor.began(0, 0, 2, 1.0)
        verdict = acceptor.before_growth(1, measure(1.0, {2: cost}))
        assert verdict is not None and verdict.kept == kept


def test_what_rounding_makes_of_the_loss_is_no_harm() -> None:
    for cost, kept in ((1 + 2**-22, False), (1 + 2**-18, True)):
        acceptor = build("nll_mask")
        acceptor.began(0, 0, 2, 1.0)
        verdict = acceptor.before_growth(1, measure(1.0, {2: cost}))
        assert verdict is not None and verdict.kept == kept


def test_a_layer_out_of_patience_stops_while_others_go_on() -> None:
    run = Run({**OFTEN, "acceptor": "nll_mask", "acceptor_config": {"tolerance": 0.9}, "patience": 1}, steps=30).go()
    refused = [(step, p["layer"]) for step, p in run.of("acceptance") if not p["kept"]]
    assert sorted(layer for _, layer in refused) == [0, 1]
    for step, layer in refused:
        assert not [1 for s, p in run.of("expansion") if p["layer"] == layer and s > step]
        rows = [row for s, p in run.of("drift") for row in p["layers"] if s > step and row["layer"] == layer]
        assert not rows, "it is not even looked at"
    assert [p["why"] for _, p in run.of("growth_ended")] == ["patience"]
    (last,) = [p for s, p in run.of("drift") if s == refused[0][0]]
    noted = [row for row in last["layers"] if row["layer"] == refused[0][1]]
    assert "out of patience" in noted[0]["note"] and noted[0]["chosen"] is None


def test_what_masking_measured_is_what_removal_does() -> None:
    run = Run({**OFTEN, "acceptor": "nll_mask", "acceptor_config": {"tolerance": 0.9}, "patience": 1}, steps=30)
    while not run.of("acceptance"):
        records, main = run.backward()
        told = run.growth.after_backward(run.done, records, main)
        refused = [p for kind, p in told if kind == "acceptance"]
        if refused:
            assert refused[0]["loss_before"] == run.evaluate()
            return
        run.optimizer.step(0.01)
        run.done += 1
        run.growth.after_step(run.done)
    raise AssertionError("nothing was ever judged")


# trial_then_keep


def test_a_trial_keeps_what_brought_the_loss_down_by_its_share() -> None:
    for after, kept in ((0.97, True), (0.9701, False)):
        acceptor = build("trial_then_keep", trial_steps=5)
        acceptor.grown(1, 4)
        acceptor.began(10, 1, 4, 1.0)
        assert acceptor.busy() and acceptor.after_step(14, measure(0)) is None
        verdict = acceptor.after_step(15, measure(after))
        assert verdict is not None and verdict.kept == kept and verdict.roll_back == (not kept)
        assert verdict.patience == (2 if kept else 1) and not acceptor.busy()
        assert (verdict.loss_before, verdict.loss_after) == (1.0, after)


def test_a_trial_ends_when_either_of_the_two_dies() -> None:
    for slot, still in ((0, True), (1, False), (4, False)):
        acceptor = build("trial_then_keep")
        acceptor.began(10, 1, 4, 1.0)
        acceptor.retired(slot)
        assert acceptor.busy() == still


TRIAL: dict[str, Any] = {"acceptor": "trial_then_keep", "patience": 9}


def trial(roll_back: bool, share: float = 0.99, **more: Any) -> Run:
    config = {"trial_steps": 4, "share": share, "roll_back": roll_back}
    return Run({**OFTEN, **TRIAL, "acceptor_config": config, "initialiser": "clone_direction", **more}, steps=30)


def test_a_refused_childs_parent_becomes_again_what_it_was_moments_and_all() -> None:
    for roll_back in (True, False):
        run = trial(roll_back)
        while not run.of("expansion"):
            before = [{e: layer.slots.keep(e) for e in layer.slots.alive()} for layer in run.growth.layers.values()]
            run.step()
        payload = run.of("expansion")[0][1]
        while not run.of("acceptance"):
            run.step()
        ((_, verdict),) = run.of("acceptance")
        assert not verdict["kept"] and (verdict["parent"], verdict["child"]) == (payload["parent"], payload["child"])
        slots = run.growth.layers[verdict["layer"]].slots
        assert verdict["child"] not in slots.alive() and not run.growth.layers[verdict["layer"]].kept
        was, now = before[verdict["layer"]][verdict["parent"]], slots.keep(verdict["parent"])
        same = [torch.equal(was[name], now[name]) for name in was]
        assert all(same) if roll_back else not any(same)


def test_while_one_is_on_trial_no_block_grows_and_none_begins_that_could_not_end() -> None:
    run = trial(True, share=0.0, detector_config={"rate": 1.0}).go()
    born = [step for step, _ in run.of("expansion")]
    judged = [step for step, _ in run.of("acceptance")]
    assert len(born) == len(judged) == len(set(born)) > 3
    for birth, verdict, following in zip(born, judged, [*born[1:], 99], strict=True):
        assert verdict == birth + 3 and following > verdict  # step counts from 1, after_step after the fourth update
    assert all(step <= 30 for step in judged)
    notes = {row.get("note") for _, p in run.of("drift") for row in p["layers"]}
    assert "an expert is on trial" in notes
    late = Run({**OFTEN, **TRIAL, "acceptor_config": {"trial_steps": 50}, "phase_steps": 20}, steps=30).go()
    assert not late.of("expansion") and late.of("growth_ended")
    assert "a trial would outlast the phase" in {row.get("note") for _, p in late.of("drift") for row in p["layers"]}
