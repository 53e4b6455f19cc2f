"""Checkpoints appear complete or not at all, and old ones go only when a new one is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from moescope.model import load_checkpoint
from moescope.train import state, train
from moescope.train.config import RunConfig
from moescope.train.optimizer import Optimizer


class Killed(BaseException):
    """As if the process had died here."""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_old_checkpoints_are_dropped_and_the_newest_kept(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    list(train(tiny({"checkpoint_every": 2, "keep_checkpoints": 2}), tmp_path / "run"))
    assert names(tmp_path / "run/checkpoints") == ["step-000006", "step-000008"]


def test_a_checkpoint_is_a_checkpoint_of_the_model_with_its_tokenizer(
    tiny: Callable[..., RunConfig], tmp_path: Path
) -> None:
    list(train(tiny({"optim.steps": 3}), tmp_path / "run"))
    model, tokenizer, card = load_checkpoint(tmp_path / "run/checkpoints/step-000003")
    assert model.config.vocab_size == 270 and tokenizer is not None and card["step"] == 3


def test_dying_while_writing_leaves_the_old_checkpoint_and_nothing_half_written(
    tiny: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny({"keep_checkpoints": 1})
    events = train(config, tmp_path / "run")
    for event in events:
        if event.kind == "checkpoint":
            break

    def die(self: Optimizer) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Optimizer, "state", die)
        list(events)
    assert names(tmp_path / "run/checkpoints") == ["step-000003"]
    resumed = list(train(config, tmp_path / "run", resume=tmp_path / "run"))
    assert resumed[0].payload["from_step"] == 3 and resumed[-1].kind == "run_finished"


def test_what_a_killed_process_left_is_cleared_and_a_moved_checkpoint_put_back(
    tiny: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config, folder = tiny(), tmp_path / "run/checkpoints"
    list(train(config, tmp_path / "run", stop=iter([False, False, True]).__next__))
    (folder / ".step-000009.77.partial").mkdir()
    (folder / ".step-000009.77.partial/config.json").touch()
    (folder / "step-000002").rename(folder / ".step-000002.77.old")
    state.clear_remains(tmp_path / "run")
    assert names(folder) == ["step-000002"]
    (folder / ".step-000002.78.old").mkdir()
    state.clear_remains(tmp_path / "run")
    assert names(folder) == ["step-000002"]


def test_an_incomplete_folder_is_not_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "checkpoints/step-000004").mkdir(parents=True)
    (tmp_path / "checkpoints/step-last").mkdir(parents=True)
    assert state.checkpoints(tmp_path) == []
