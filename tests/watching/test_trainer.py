"""`WatchCallback` in transformers.Trainer, with accumulation, clipping and evaluation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moescope.data.base import TokenSet
from moescope.errors import InputError
from moescope.watching import WatchCallback
from watch_cases import FAMILIES, Read, batches, build

Reader = Callable[[], Read]


def trainer(model: Any, folder: Path, *callbacks: Any, collator: Any = None, **options: Any) -> Any:
    """Three steps of two passes of two rows each, evaluated at the end."""
    from transformers import Trainer, TrainingArguments

    rows = [{name: value[0] for name, value in batch.items()} for batch in batches(12, rows=1, padded=True)]
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=3,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        max_grad_norm=0.5,
        eval_strategy="steps",
        eval_steps=3,
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        seed=3,
        **options,
    )
    return Trainer(
        model=model, args=arguments, train_dataset=rows, eval_dataset=rows[:2], callbacks=list(callbacks),
        data_collator=collator,
    )  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trainer_is_watched_and_trains_bit_for_bit_as_it_would(
    family: str, home: Path, read: Reader, probe: TokenSet, tmp_path: Path
) -> None:
    alone, watched = build(family), build(family)
    plain = trainer(alone, tmp_path)
    plain.train()
    seen: list[dict[str, torch.Tensor]] = []

    def collator(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        seen.append(batch)
        return batch

    callback = WatchCallback(
        run="trained", home=home, probe=probe, log_every=1, load_every=1, snapshot_every=2, drift_every=1
    )
    other = trainer(watched, tmp_path, callback, collator=collator)
    other.train()
    for (name, one), (_, two) in zip(alone.named_parameters(), watched.named_parameters(), strict=True):
        assert torch.equal(one, two), name
    run = read().run
    assert (run.name, run.status, run.step, run.steps) == ("trained", "finished", 3, 3)
    logged = [row["loss"] for row in other.state.log_history if "loss" in row]
    told = read().events("train")
    assert [event.step for event in told] == [1, 2, 3]
    assert [event.payload["loss"] for event in told] == pytest.approx(logged, abs=2e-4)
    rates = [row["learning_rate"] for row in other.state.log_history if "learning_rate" in row]
    assert [event.payload["lr"] for event in told] == pytest.approx(rates)
    tokens = np.cumsum([int(batch["attention_mask"].sum()) for batch in seen[:6]])
    assert [event.payload["tokens"] for event in told] == tokens[1::2].tolist()
    loads = read().events("load")
    assert [load.payload["layers"][0]["tokens"] for load in loads] == np.diff(tokens[1::2], prepend=0).tolist()
    assert [event.step for event in read().events("drift")] == [1, 2, 3]
    assert [event.step for event in read().events("snapshot")] == [0, 2, 3]
    (held,) = [row["eval_loss"] for row in other.state.log_history if "eval_loss" in row]
    assert [event.payload["loss"] for event in read().events("eval")] == [pytest.approx(held)]
    assert read().events("run_finished")[0].payload["eval_loss"] == pytest.approx(held)
    assert read().events("run_started")[0].payload["config"]["trainer"]["gradient_accumulation_steps"] == 2


def test_a_training_that_an_exception_ended_is_closed_when_the_callback_is_used_again(
    home: Path, read: Reader, tmp_path: Path
) -> None:
    from transformers import TrainerCallback

    class Breaks(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            raise RuntimeError("the loader broke")

    callback = WatchCallback(run="m", home=home)
    model = build("mixtral")
    with pytest.raises(RuntimeError, match="the loader broke"):
        trainer(model, tmp_path, callback, Breaks()).train()
    assert read().run.status == "running"
    trainer(model, tmp_path, callback).train()
    status = [(run.status, run.error) for run in read().store.runs() if run.origin == "run"]
    assert status == [("failed", "training began anew before it had ended."), ("finished", None)]


def test_what_cannot_be_watched_is_refused_before_it_trains(home: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="torch_compile"):
        trainer(build("mixtral"), tmp_path, WatchCallback(run="m", home=home), torch_compile=True)
