"""A run that is killed again and again ends as one that was not: same losses, same experts, same story, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

HERE = Path(__file__).parent
BASE: dict[str, Any] = {
    "model": {
        "input": "vectors",
        "head": "class",
        "causal": False,
        "num_heads": 0,
        "d_model": 8,
        "num_layers": 2,
        "d_expert": 8,
        "num_experts": 2,
        "max_experts": 6,
        "router_config": {"k": 1},
        "max_seq": 1,
    },
    "data": {"spec": {"corpus": "clusters", "clusters": 4, "dims": 6, "tokens": 400}, "tokens": 400},
    "optim": {"steps": 120, "batch": 16, "lr": 0.01, "warmup": 5},
    "expansion": {
        "detector": "mass",
        "detector_config": {"warmup": 6, "omega": 4, "alpha": 0.4, "c": 50.0},
        "acceptor": "trial_then_keep",
        "acceptor_config": {"trial_steps": 9, "share": 0.001},
        "phase": 1.0,
        "patience": 50,
    },
    "probe": {"tokens": 40, "sample": 10},
    "eval_batches": 1,
    "eval_every": 20,
    "snapshot_every": 0,
    "checkpoint_every": 5,
    "keep_checkpoints": 2,
}


SHORT = {
    **BASE,
    "optim": {**BASE["optim"], "steps": 4, "warmup": 1},
    "expansion": None,
    "checkpoint_every": 3,
    "keep_checkpoints": 1,
}
PLANS = {
    "random": {"config": BASE, "kills": 20, "seed": 0},
    "written": {"config": SHORT, "operations": 3},
}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where kill_runs.py carried out all plans, in one process: loading torch takes longer than a life."""
    out = tmp_path_factory.mktemp("killed")
    (out / "plans.json").write_text(json.dumps(PLANS))
    command = [sys.executable, str(HERE / "kill_runs.py"), str(out / "plans.json"), str(out)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def story(folder: Path) -> list[tuple[int, str, dict[str, Any]]]:
    """What a reader of the log makes of it: what came after a checkpoint that the run went on from was taken back."""
    kept: list[dict[str, Any]] = []
    for line in (folder / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["kind"] == "run_started":
            kept = []
        elif event["kind"] == "run_resumed":
            kept = [old for old in kept if old["step"] <= event["payload"]["from_step"]]
        elif event not in kept:  # told again with its time, as the order was given again
            kept.append(event)
    return [
        (event["step"], event["kind"], {name: value for name, value in event["payload"].items() if name != "seconds"})
        for event in kept
        if event["kind"] not in ("checkpoint", "run_started")
    ]


def require_same_end(one: Path, other: Path) -> None:
    last = [sorted((folder / "checkpoints").iterdir())[-1] for folder in (one, other)]
    assert last[0].name == last[1].name
    for name in ("model.safetensors", "optimizer.safetensors", "expansion.safetensors"):
        here, there = (load_file(path / name) for path in last)
        assert here.keys() == there.keys()
        assert [key for key in here if here[key].numpy().tobytes() != there[key].numpy().tobytes()] == []
    assert json.loads((last[0] / "expansion.json").read_text()) == json.loads((last[1] / "expansion.json").read_text())
    assert not [path.name for path in (other / "checkpoints").iterdir() if path.name.startswith(".")]


def test_twenty_kills_at_random_moments_change_nothing(killed: Path) -> None:
    told = json.loads((killed / "random/told.json").read_text())
    assert told["kills"] == 20 and len(set(told["steps"])) > 3, "the kills were spread over the run"
    whole = story(killed / "random/whole")
    changes = Counter(kind for _, kind, _ in whole)
    assert changes["expansion"] >= 3 and changes["acceptance"] >= 2, "there was something to lose"
    assert story(killed / "random/broken") == whole
    require_same_end(killed / "random/whole", killed / "random/broken")


def test_a_kill_before_any_file_operation_of_a_checkpoint_changes_nothing(killed: Path) -> None:
    """At step 3 one is written as it is due, and one over it as an expert is split by hand; at step 4 it is dropped.

    The order is given again with every life, as by a store that never heard the answer.
    """
    folder = killed / "written"
    numbers = json.loads((folder / "told.json").read_text())["killed"]
    assert len(numbers) > 20
    whole = story(folder / "whole")
    assert [kind for step, kind, _ in whole if step == 3].count("expansion") == 1
    for number in numbers:
        assert story(folder / f"broken-{number}") == whole, number
        require_same_end(folder / "whole", folder / f"broken-{number}")


def test_a_story_takes_back_what_was_not_kept(tmp_path: Path) -> None:
    """The reader itself, on a log written by hand."""
    lines = [
        {"step": 0, "kind": "run_started", "payload": {}, "time": 0},
        {"step": 1, "kind": "train", "payload": {"loss": 1, "seconds": 3}, "time": 1},
        {"step": 2, "kind": "train", "payload": {"loss": 2}, "time": 2},
        {"step": 1, "kind": "run_resumed", "payload": {"from_step": 1}, "time": 3},
        {"step": 2, "kind": "train", "payload": {"loss": 5}, "time": 4},
    ]
    (tmp_path / "events.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert story(tmp_path) == [(1, "train", {"loss": 1}), (2, "train", {"loss": 5})]
