"""The presets in which experts grow: there is room, enough pictures are taken, and what arrives does so in time."""

from __future__ import annotations

from pathlib import Path

import pytest

from moescope.train import load_run_config, preset_names, train

GROWING = [name for name in preset_names() if name.startswith("grow-")]


def test_there_are_four() -> None:
    assert GROWING == ["grow-clusters", "grow-digits", "grow-ginc", "grow-installed"]


@pytest.mark.parametrize("name", GROWING)
def test_there_is_room_to_grow_and_enough_is_seen_of_it(name: str) -> None:
    config = load_run_config(name)
    assert config.expansion is not None
    assert config.model.num_slots >= 2 * config.model.num_experts
    steps, end = config.optim.steps, config.expansion.phase_end(config.optim.steps)
    assert 0.5 * steps < end < steps, "most of the run grows, and its end shows a fixed set"
    assert 10 <= steps / config.snapshot_every <= 60
    arrive = config.data.arrive
    if arrive is not None:
        assert (len(arrive.order) - 1) * arrive.every < end, "the last to arrive is still watched"


@pytest.mark.parametrize("name", ["grow-clusters", "grow-ginc", "grow-digits"])
def test_a_growing_preset_runs(name: str, tmp_path: Path) -> None:
    """A few steps of each whose data needs nothing of the machine; `grow-installed` reads what is installed there."""
    changes = {
        "optim.steps": 12, "optim.warmup": 2, "snapshot_every": 0, "eval_batches": 1, "data.tokens": 20_000,
        "probe.tokens": 200, "probe.sample": 50, "threads": 1, "expansion.start": 0, "expansion.phase_steps": 8,
    }  # fmt: skip
    config = load_run_config(name, changes)
    events = list(train(config, tmp_path / "run"))
    assert events[-1].kind == "run_finished"
    assert {"drift", "load", "eval", "growth_ended"} <= {event.kind for event in events}
