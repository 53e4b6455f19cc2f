"""Orders by hand: carried out between two steps, each answered once, nothing lost or done twice by a kill."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from moescope.errors import InputError
from moescope.events import Event
from moescope.train import train
from moescope.train.config import RunConfig
from moescope.train.orders import Order
from moescope.train.state import Saved, checkpoints
from train.by_hand import CountingGrowth

GROWABLE: dict[str, Any] = {"model.max_experts": 6, "model.num_layers": 1, "optim.steps": 6, "checkpoint_every": 0}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moescope.train.run.POLL", 0.01)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moescope.train.run.Growth", CountingGrowth)


def given(plan: Mapping[int, Sequence[Order]]) -> Callable[[], Sequence[Order]]:
    """What is said when asked for the n-th time; 0 is before the first step."""
    asked = iter(range(10**6))
    return lambda: plan.get(next(asked), ())


def kinds(events: Sequence[Event]) -> list[str]:
    return [event.kind for event in events]


def answers(events: Sequence[Event]) -> list[Mapping[str, Any]]:
    return [event.payload for event in events if event.kind == "order"]


def told(events: Sequence[Event]) -> list[Any]:
    return [(e.step, e.kind, {**e.payload, "seconds": 0}) for e in events if e.kind in ("train", "load", "eval")]


def test_a_paused_run_waits_keeps_what_it_has_and_does_not_count_the_time(
    tiny: Callable[..., RunConfig], tmp_path: Path
) -> None:
    plan = {2: [Order("a", "pause")], 30: [Order("b", "go_on")]}
    events = list(train(tiny(GROWABLE), tmp_path / "run", orders=given(plan)))
    at = kinds(events).index("run_paused")
    assert kinds(events)[at - 2 : at + 3] == ["checkpoint", "order", "run_paused", "order", "run_unpaused"]
    assert [(e.step, e.kind) for e in events if e.kind in ("run_paused", "run_unpaused")] == [
        (2, "run_paused"),
        (2, "run_unpaused"),
    ]
    waited = next(event.payload["seconds"] for event in events if event.kind == "run_unpaused")
    assert waited >= 27 * 0.01
    times = [event.payload["seconds"] for event in events if event.kind == "train"]
    walls = [event.time for event in events if event.kind == "train"]
    assert times == sorted(times) and times[2] - times[1] <= walls[2] - walls[1] - waited + 0.05
    assert told(events) == told(list(train(tiny(GROWABLE), tmp_path / "plain")))
    assert answers(events) == [
        {"id": "a", "order": "pause", "layer": None, "expert": None, "done": True},
        {"id": "b", "order": "go_on", "layer": None, "expert": None, "done": True},
    ]


def test_polling_is_not_busy(tiny: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moescope.train import orders as module

    assert module.POLL == 0.25
    monkeypatch.setattr("moescope.train.run.POLL", 0.05)
    asked: list[float] = []
    plan = given({1: [Order("a", "pause")], 5: [Order("b", "go_on")]})

    def orders() -> Sequence[Order]:
        asked.append(time.perf_counter())
        return plan()

    list(train(tiny(GROWABLE), tmp_path / "run", orders=orders))
    assert all(later - earlier >= 0.05 for earlier, later in pairwise(asked[1:6]))


def test_a_paused_run_can_be_stopped_and_goes_on_unpaused(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    config, asked = tiny(GROWABLE), iter(range(10**6))
    plan = given({2: [Order("a", "pause")]})
    events = list(train(config, tmp_path / "run", orders=plan, stop=lambda: next(asked) == 8))
    assert kinds(events)[-4:] == ["checkpoint", "order", "run_paused", "run_stopped"]
    rest = list(train(config, tmp_path / "run", resume=tmp_path / "run"))
    assert kinds(rest)[0] == "run_resumed" and kinds(rest)[-1] == "run_finished"
    assert told(events) + told(rest) == told(list(train(config, tmp_path / "plain")))


def test_what_cannot_be_done_is_refused_in_a_sentence_and_the_run_goes_on(
    tiny: Callable[..., RunConfig], tmp_path: Path
) -> None:
    plan = {
        0: [Order("a", "go_on"), Order("b", "split", 0, 0)],
        1: [Order("c", "pause"), Order("d", "pause"), Order("e", "go_on")],
        6: [Order("f", "checkpoint")],
    }
    events = list(train(tiny({"optim.steps": 6}), tmp_path / "run", orders=given(plan)))
    assert [(answer["id"], answer["done"]) for answer in answers(events)] == [
        ("a", False), ("b", False), ("c", True), ("d", False), ("e", True), ("f", False),
    ]  # fmt: skip
    why = {answer["id"]: answer.get("why") for answer in answers(events)}
    assert "not paused" in why["a"] and "max_experts" in why["b"]
    assert "paused already" in why["d"] and "finished" in why["f"]
    assert all(text.endswith(".") and "\n" not in text for text in why.values() if text)
    assert events[-1].kind == "run_finished" and events[-1].step == 6
    with pytest.raises(InputError, match="'explode' is no order"):
        Order("x", "explode")  # type: ignore[arg-type]


def test_a_checkpoint_is_written_when_asked_for_and_not_twice(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    plan = {2: [Order("a", "checkpoint"), Order("b", "checkpoint")]}
    events = list(train(tiny(GROWABLE), tmp_path / "run", orders=given(plan)))
    assert [event.step for event in events if event.kind == "checkpoint"] == [2, 6]
    assert [answer["done"] for answer in answers(events)] == [True, True]
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-000002", "step-000006"]


def test_growth_is_asked_at_every_step_and_its_events_come_in_order(
    tiny: Callable[..., RunConfig], tmp_path: Path, counting: None
) -> None:
    config = tiny({**GROWABLE, "eval_every": 1, "load_every": 1, "log_every": 1})
    events = list(train(config, tmp_path / "run"))
    third = [event.kind for event in events if event.step == 3]
    assert third == ["train", "load", "drift", "acceptance", "eval"]
    assert [event.step for event in events] == sorted(event.step for event in events)
    assert all("redundancy" in event.payload["objectives"] for event in events if event.kind == "train")
    evals = {event.step: event.payload["loss"] for event in events if event.kind == "eval"}
    drifts = {event.step: event.payload["loss"] for event in events if event.kind == "drift"}
    assert all(drifts[step] == evals[step - 1] for step in drifts), "looked at before the update"
    after = next(event for event in events if event.kind == "acceptance")
    assert after.payload["loss_after"] == evals[3]
    without = list(train(tiny({**GROWABLE, "model.max_experts": 4}), tmp_path / "without"))
    assert "drift" not in kinds(without)


def test_growth_sees_the_gradient_before_it_is_clipped(
    tiny: Callable[..., RunConfig], tmp_path: Path, counting: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[tuple[float, float]] = []
    look = CountingGrowth.after_backward

    def watched(self: CountingGrowth, *arguments: Any) -> Any:
        before = [weight.grad.clone() for weight in self.model.parameters() if weight.grad is not None]
        found = look(self, *arguments)
        after = [weight.grad for weight in self.model.parameters() if weight.grad is not None]
        norms.append(tuple(float(torch.nn.utils.get_total_norm(grads)) for grads in (before, after)))  # type: ignore[arg-type]
        return found

    monkeypatch.setattr(CountingGrowth, "after_backward", watched)
    events = list(train(tiny({**GROWABLE, "optim.clip": 0.01}), tmp_path / "run"))
    shown = [event.payload["grad_norm"] for event in events if event.kind == "train"]
    assert shown == pytest.approx([after for _, after in norms]) and min(shown) > 0.01
    assert all(after > before for before, after in norms)


def test_loads_name_the_living(tiny: Callable[..., RunConfig], tmp_path: Path, counting: None) -> None:
    plan = {2: [Order("a", "split", 0, 1), Order("b", "retire", 0, 0)]}
    events = list(train(tiny({**GROWABLE, "load_every": 1}), tmp_path / "run", orders=given(plan)))
    alive = [event.payload["layers"][0]["alive"] for event in events if event.kind == "load"]
    assert alive == [[0, 1, 2, 3]] * 2 + [[1, 2, 3, 4]] * 4


def test_a_split_is_kept_before_it_is_told_and_the_resumed_run_is_the_same(
    tiny: Callable[..., RunConfig], tmp_path: Path, counting: None
) -> None:
    config = tiny({**GROWABLE, "load_every": 1})
    plan = {2: [Order("a", "split", 0, 1)], 4: [Order("b", "retire", 0, 2)]}
    whole = list(train(config, tmp_path / "whole", orders=given(plan)))
    at = kinds(whole).index("expansion")
    assert kinds(whole)[at : at + 3] == ["expansion", "order", "checkpoint"]
    assert [event.step for event in whole if event.kind == "checkpoint"] == [2, 4, 6]
    first: list[Event] = []
    for event in train(config, tmp_path / "parts", orders=given(plan)):
        first.append(event)
        if event.kind == "prune":
            break
    rest = list(train(config, tmp_path / "parts", resume=tmp_path / "parts"))
    assert rest[0].kind == "run_resumed" and rest[0].step == 4
    assert told(first) + told(rest) == told(whole)
    last = [load_file(tmp_path / run / "checkpoints/step-000006/model.safetensors") for run in ("whole", "parts")]
    assert all(torch.equal(last[0][name], last[1][name]) for name in last[0])
    assert last[0]["blocks.0.moe.alive_E"].tolist() == [True, True, False, True, True, False]


def test_an_order_given_again_after_a_kill_is_answered_and_not_done_again(
    tiny: Callable[..., RunConfig], tmp_path: Path, counting: None
) -> None:
    """Killed once the checkpoint is there, and before the order's event was written down: the order comes again."""
    config, folder = tiny(GROWABLE), tmp_path / "run"
    first: Iterator[Event] = train(config, folder, orders=given({3: [Order("a", "split", 0, 1)]}))
    before = next(event for event in first if event.kind == "expansion")
    del first
    plan = {0: [Order("a", "split", 0, 1), Order("b", "split", 0, 0)]}
    rest = list(train(config, folder, resume=folder, orders=given(plan)))
    splits = [event for event in rest if event.kind == "expansion"]
    assert [(event.payload["parent"], event.payload["count"]) for event in splits] == [(1, 1), (0, 2)]
    assert splits[0] == before, "its time as well, so that it can be told from another one"
    assert [(answer["id"], answer["done"]) for answer in answers(rest)] == [("a", True), ("b", True)]
    assert [event.step for event in rest if event.kind == "checkpoint"] == [3, 6]


def test_refusals_of_growth_itself_are_passed_on(
    tiny: Callable[..., RunConfig], tmp_path: Path, counting: None
) -> None:
    plan = {1: [Order(str(n), "split", 0, 1) for n in range(3)], 2: [Order("x", "split", 0), Order("y", "retire")]}
    events = list(train(tiny(GROWABLE), tmp_path / "run", orders=given(plan)))
    assert [answer["done"] for answer in answers(events)] == [True, True, False, False, False]
    assert answers(events)[2]["why"] == "Block 0 has no free expert slot."
    assert all("Which expert" in answer["why"] for answer in answers(events)[3:])
    assert [event.step for event in events if event.kind == "checkpoint"] == [1, 1, 6]


def test_damaged_growth_is_told_and_a_checkpoint_from_before_growth_resumes(
    tiny: Callable[..., RunConfig], tmp_path: Path, counting: None
) -> None:
    config, folder = tiny(GROWABLE), tmp_path / "run"
    asked = iter(range(10**6))
    list(train(config, folder, stop=lambda: next(asked) == 3))
    newest = Saved.find(folder).path
    kept = {name: (newest / name).read_bytes() for name in ("expansion.json", "expansion.safetensors")}
    for name, content in kept.items():
        for damaged in (b"", b"{", content[: len(content) // 2]):
            (newest / name).write_bytes(damaged)
            with pytest.raises(InputError, match="damaged") as caught:
                list(train(config, folder, resume=folder))
            assert "\n" not in str(caught.value)
        (newest / name).unlink()
        with pytest.raises(InputError, match="damaged"):
            list(train(config, folder, resume=folder))
        (newest / name).write_bytes(content)
    (newest / "expansion.json").write_text('{"splits": 7}')
    with pytest.raises(InputError, match="does not fit together"):
        list(train(config, folder, resume=folder))
    for name in kept:
        (newest / name).unlink()
    assert list(train(config, folder, resume=folder))[-1].kind == "run_finished"
