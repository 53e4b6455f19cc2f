"""Ranks decide alike even where their held-out losses do not agree: the first one's count."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from expansion_runs import Run

SCRIPT = Path(__file__).with_name("ranks_run.py")
OFTEN = {"detector": "random", "detector_config": {"rate": 0.4}}
CASES: dict[str, dict[str, Any]] = {
    "nll_mask": {
        "expansion": {**OFTEN, "acceptor": "nll_mask", "patience": 2, "prune_at_end": True, "prune_tolerance": 0.3},
        "model": {},
    },
    "trial": {
        "expansion": {
            **OFTEN,
            "acceptor": "trial_then_keep",
            "acceptor_config": {"trial_steps": 3, "share": 0.05},
            "initialiser": "clone_direction",
            "patience": 9,
        },
        "model": {"router": "topk_softmax"},
    },
    "coverage": {
        "expansion": {"detector": "coverage", "detector_config": {"every": 3}},
        "model": {"router": "dynmoe"},
    },
}


def both(case: dict[str, Any], meeting: Path) -> list[dict[str, Any]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(SCRIPT)]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(meeting), json.dumps(case)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    ended = [(process.communicate(timeout=120), process.returncode) for process in ranks]
    for (_, complaint), code in ended:
        assert code == 0, complaint[-2000:]
    return [json.loads(said.splitlines()[-1]) for (said, _), _ in ended]


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_grow_bit_for_bit_alike(name: str, tmp_path: Path) -> None:
    first, second = both(CASES[name], tmp_path / "meeting")
    assert first["counts"]["expansion"] > 1 and first["counts"]["growth_ended"] == 1
    assert first["counts"]["acceptance"] > 0 or name == "coverage"
    assert first["alive"] == second["alive"]
    assert first["digest"] == second["digest"]
    assert [(s, k) for s, k, _ in json.loads(first["told"])] == [(s, k) for s, k, _ in json.loads(second["told"])]
    if name == "coverage":  # which counts tokens: those of both ranks
        alone = Run(CASES[name]["expansion"], steps=24, **CASES[name]["model"])
        while not alone.of("expansion"):
            alone.step()
        step, payload = alone.of("expansion")[0]
        there = next((s, p) for s, k, p in json.loads(first["told"]) if k == "expansion")
        assert there[0] == step and there[1]["parent"] == payload["parent"]
        assert there[1]["signals"] == pytest.approx(payload["signals"])
