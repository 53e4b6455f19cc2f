"""Stopped and resumed is, bit for bit, the same as never stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from moescope.errors import InputError
from moescope.events import Event
from moescope.routers import ROUTERS
from moescope.train import train
from moescope.train.config import RunConfig
from moescope.train.noise import noise
from moescope.train.state import checkpoints

CASES: dict[str, dict[str, Any]] = {
    **{name: {"model.router": name, "model.leaky_control": True} for name in ROUTERS},
    "shared": {"model.num_shared_experts": 1},
    "steered": {"model.router": "top_p", "model.router_config": {"p": 0.6, "target_k": 1.5, "gain_i": 0.5}},
    "growable": {"model.max_experts": 6},
    "dense block": {"model.moe_layers": [1]},
    "bf16": {"optim.precision": "bf16"},
    "no objective": {"objectives": {}},
}
EXACT = ("train", "load", "eval", "drift", "expansion", "acceptance", "prune", "growth_ended")
OFTEN = {"omega": 3, "warmup": 4, "alpha": 0.5, "c": 50.0}
TRIAL = {"acceptor": "trial_then_keep", "acceptor_config": {"trial_steps": 5, "share": 0.0005}}
GROWING: dict[str, dict[str, Any]] = {
    "mass": {"detector": "mass", "detector_config": OFTEN, "acceptor": "nll_mask", "prune_at_end": True},
    "on trial": {"detector": "mass", "detector_config": OFTEN, **TRIAL, "patience": 50},
    "conflict": {
        "detector": "conflict",
        "detector_config": {"every": 3, "window": 3, "fall": 0.9, "statistic": 0.0, "explained": 0.0, "fewest": 2},
        "initialiser": "clone_direction",
    },
    "page_hinkley": {"detector": "page_hinkley", "detector_config": {"lam": 0.1, "min_samples": 4}},
    "coverage": {"detector": "coverage", "detector_config": {"every": 4}},
    "random": {"detector": "random", "detector_config": {"rate": 0.3}, "moments": "copy"},
}


def stop_after(steps: int) -> Callable[[], bool]:
    asked = iter(range(10**6))
    return lambda: next(asked) >= steps


def told(events: Iterable[Event]) -> list[tuple[int, str, dict[str, Any]]]:
    """What must not differ: everything but times."""
    return [
        (event.step, event.kind, {key: value for key, value in event.payload.items() if key != "seconds"})
        for event in events
        if event.kind in EXACT
    ]


@pytest.mark.parametrize("case", CASES)
def test_stopping_and_resuming_changes_nothing(case: str, tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    """Stopped at step 4: between evaluations (5), between checkpoints (3, 6), inside the second epoch."""
    config = tiny({**CASES[case], "load_every": 1})
    whole = told(train(config, tmp_path / "whole"))
    stopped = list(train(config, tmp_path / "parts", stop=stop_after(4)))
    assert [event.kind for event in stopped[-2:]] == ["checkpoint", "run_stopped"]
    resumed = list(train(config, tmp_path / "parts", resume=tmp_path / "parts"))
    assert resumed[0].kind == "run_resumed" and resumed[0].payload["from_step"] == 4
    assert told(stopped) + told(resumed) == whole
    assert len({step for step, kind, _ in whole if kind == "train"}) == 8
    last = [tmp_path / run / "checkpoints" / "step-000008" for run in ("whole", "parts")]
    for name in ("model.safetensors", "optimizer.safetensors"):
        one, other = (load_file(path / name) for path in last)
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("case", GROWING)
def test_a_growing_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    case: str, tiny: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """Windows, pairs, patience, masks, moments, a trial in progress: all events and the whole state are the same."""
    router = {"model.router": "dynmoe"} if case == "coverage" else {}
    grown = {"model.num_experts": 2, "model.max_experts": 6, "expansion": {**GROWING[case], "phase": 0.8}}
    config = tiny({**router, **grown, "optim.steps": 24, "eval_every": 0, "load_every": 1})
    whole = told(train(config, tmp_path / "whole"))
    parts = told(train(config, tmp_path / "parts", stop=stop_after(9)))
    for steps in (4, 3, 99):
        parts += told(train(config, tmp_path / "parts", resume=tmp_path / "parts", stop=stop_after(steps)))
    assert parts == whole
    last = [tmp_path / run / "checkpoints" / "step-000024" for run in ("whole", "parts")]
    for name in ("model.safetensors", "optimizer.safetensors", "expansion.safetensors"):
        one, other = (load_file(path / name) for path in last)
        assert one.keys() == other.keys()
        assert [key for key in one if one[key].numpy().tobytes() != other[key].numpy().tobytes()] == []
    assert (last[0] / "expansion.json").read_bytes() == (last[1] / "expansion.json").read_bytes()
    kinds = [kind for _, kind, _ in whole]
    assert kinds.count("drift") > 3 and kinds.count("expansion") >= 1 and kinds.count("growth_ended") == 1
    assert ("acceptance" in kinds) == (case in ("mass", "on trial"))


def test_the_controller_of_top_p_moved_and_was_saved(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    list(train(tiny(CASES["steered"]), tmp_path / "run"))
    saved = load_file(tmp_path / "run/checkpoints/step-000008/model.safetensors")
    assert saved["blocks.0.moe.router.p_star"] != 0.6 and saved["blocks.0.moe.router.error_sum"] != 0


def test_resuming_twice_and_from_an_older_checkpoint_is_exact(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = tiny({"keep_checkpoints": 9})
    whole = told(train(config, tmp_path / "whole"))
    parts = told(train(config, tmp_path / "parts", stop=stop_after(2)))
    parts += told(train(config, tmp_path / "parts", resume=tmp_path / "parts", stop=stop_after(3)))
    parts += told(train(config, tmp_path / "parts", resume=tmp_path / "parts"))
    assert parts == whole
    again = told(train(config, tmp_path / "parts", resume=tmp_path / "parts/checkpoints/step-000003"))
    assert again == [item for item in whole if item[0] > 3]


def test_what_the_caller_draws_in_between_changes_nothing(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = tiny({"optim.steps": 3})
    quiet = told(train(config, tmp_path / "quiet"))
    torch.manual_seed(5)
    before, loud = torch.rand(1), []
    torch.manual_seed(5)
    for event in train(config, tmp_path / "loud"):
        loud.append(event)
        if event.kind == "run_started":
            assert torch.equal(torch.rand(1), before)
        torch.rand(3)
    assert told(loud) == quiet


def test_noise_is_a_function_of_seed_and_step_alone() -> None:
    def drawn(seed: int, step: int) -> list[float]:
        with noise(seed, step, torch.device("cpu")):
            return list(torch.randn(4).tolist())

    first = drawn(0, 5)
    torch.rand(7)
    assert drawn(0, 5) == first
    assert first not in (drawn(0, 6), drawn(1, 5))
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    drawn(0, 0)
    assert torch.equal(torch.rand(2), expected)


def test_seeds_differ(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    one, other = (told(train(tiny({"seed": seed, "optim.steps": 2}), tmp_path / str(seed))) for seed in (0, 1))
    assert one != other


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optim.lr": 0.02}, r"optim\.lr is 0\.02, it was 0\.01"),
        ({"optim.steps": 9}, r"optim\.steps is 9, it was 8"),
        ({"objectives": {"load_balance": 0.01}}, r"objectives\.router_z is None, it was 0\.001"),
        ({"model.router_config": {"k": 1}}, r"model\.router_config\.k is 1, it was None"),
    ],
)
def test_another_configuration_is_refused_with_the_difference(
    tiny: Callable[..., RunConfig], tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    list(train(tiny(), tmp_path / "run", stop=stop_after(1)))
    with pytest.raises(InputError, match=words):
        train(tiny(changes), tmp_path / "run", resume=tmp_path / "run")


def test_changed_data_is_refused(tiny: Callable[..., RunConfig], texts: Path, tmp_path: Path) -> None:
    own = tmp_path / "texts"
    shutil.copytree(texts, own)
    config = tiny({"data.spec": str(own)})
    list(train(config, tmp_path / "run", stop=stop_after(1)))
    (own / "text00.txt").write_text("the bucket tips\n" * 20, "utf-8")
    with pytest.raises(InputError, match="data is not what it was trained on"):
        list(train(config, tmp_path / "run", resume=tmp_path / "run"))


def test_a_folder_that_holds_a_run_is_not_trained_in_again(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    list(train(tiny(), tmp_path / "run", stop=stop_after(1)))
    with pytest.raises(InputError, match="already holds a run"):
        train(tiny(), tmp_path / "run")


def test_a_run_goes_on_with_the_threads_it_began_with(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    before = torch.get_num_threads()
    list(train(tiny(), tmp_path / "run", stop=stop_after(1)))
    torch.set_num_threads(before + 1)
    try:
        events = train(tiny(), tmp_path / "run", resume=tmp_path / "run")
        next(events)
        assert torch.get_num_threads() == before
        list(events)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_nothing_to_resume_is_told(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no checkpoint"):
        train(tiny(), tmp_path / "run", resume=tmp_path / "run")


def test_a_finished_run_resumes_to_its_end(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    finished = list(train(tiny({"optim.steps": 3}), tmp_path / "run"))[-1]
    again = list(train(tiny({"optim.steps": 3}), tmp_path / "run", resume=tmp_path / "run"))
    assert [event.kind for event in again] == ["run_resumed", "run_finished"]
    assert {**again[-1].payload, "seconds": 0} == {**finished.payload, "seconds": 0}


def test_a_checkpoint_of_an_older_release_resumes(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    """One that knows nothing of growth, nor of settings that came since."""
    config = tiny()
    whole = told(train(config, tmp_path / "whole"))
    list(train(config, tmp_path / "run", stop=stop_after(4)))
    newest = checkpoints(tmp_path / "run")[-1]
    plain = json.loads((newest / "run.json").read_text("utf-8"))
    del plain["by_hand"], plain["config"]["expansion"], plain["config"]["data"]["arrive"]
    model = json.loads((newest / "config.json").read_text("utf-8"))
    for since in ("expert", "position", "norm", "num_values"):
        del plain["config"]["model"][since], model["model"][since]
    (newest / "run.json").write_text(json.dumps(plain), "utf-8")
    (newest / "config.json").write_text(json.dumps(model), "utf-8")
    assert not list(newest.glob("expansion.*")), "a run without free slots has nothing to keep of growth"
    resumed = told(train(config, tmp_path / "run", resume=tmp_path / "run"))
    assert resumed == [item for item in whole if item[0] > 4]
    with pytest.raises(InputError, match="expert is 'linear', it was 'swiglu'"):
        train(tiny({"model.expert": "linear"}), tmp_path / "run", resume=tmp_path / "run")


@pytest.mark.parametrize("damage", ["run.json", "optimizer.safetensors", "model.safetensors", "version", "moments"])
def test_a_damaged_checkpoint_is_refused(tiny: Callable[..., RunConfig], tmp_path: Path, damage: str) -> None:
    list(train(tiny(), tmp_path / "run", stop=stop_after(1)))
    newest = checkpoints(tmp_path / "run")[-1]
    if damage == "version":
        plain = json.loads((newest / "run.json").read_text("utf-8"))
        (newest / "run.json").write_text(json.dumps({**plain, "version": 99}), "utf-8")
    elif damage == "moments":
        from safetensors.torch import save_file

        save_file({"exp_avg.embed.weight": torch.zeros(2)}, newest / "optimizer.safetensors")
    else:
        (newest / damage).write_bytes(b"\0" * 20)
    with pytest.raises(InputError) as caught:
        list(train(tiny(), tmp_path / "run", resume=tmp_path / "run"))
    assert "\n" not in str(caught.value)
