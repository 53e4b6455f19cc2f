"""A plain loop that is watched: what is told is what happened, and nothing else is any different."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import moescope
from moescope.adapters import open_checkpoint
from moescope.adapters.tokenization import byte_tokenizer
from moescope.data.base import TokenSet
from moescope.errors import InputError
from moescope.model import ModelConfig, Transformer
from moescope.trace.io import read_trace, write_trace
from moescope.trace.recorder import record_trace
from watch_cases import FAMILIES, MOE_BLOCKS, Read, batches, build, train

Reader = Callable[[], Read]


def independent_counts(model: Any, batch: dict[str, torch.Tensor], k: int) -> list[np.ndarray]:
    """Assignments per expert of each block, from `output_router_logits`, padding left out. With dropout off."""
    mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).flatten().bool()
    with torch.no_grad():
        logits = model(**batch, output_router_logits=True).router_logits
    return [np.bincount(item[mask].topk(k).indices.flatten(), minlength=item.shape[1]) for item in logits]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # reentrant, in passes without gradients
@pytest.mark.parametrize("checkpointing", [None, False, True], ids=["plain", "checkpointed", "reentrant"])
def test_load_equals_an_independent_count_under_accumulation_padding_and_checkpointing(
    family: str, checkpointing: bool | None, home: Path, read: Reader
) -> None:
    model = build(family, attention_dropout=0.0)
    if checkpointing is not None:
        model.activation_checkpointing_enable({"use_reentrant": checkpointing})
        model.enable_input_require_grads()
    data = batches(4, padded=True)
    k = model.config.num_experts_per_tok
    counts = [independent_counts(model, batch, k) for batch in data[:2]]
    tokens = sum(int(batch["attention_mask"].sum()) for batch in data)
    with moescope.watch(model, run="count", home=home, load_every=1, log_every=1) as watcher:
        for mode in (model.eval, model.train):  # passes that are no training: an evaluation, and one without gradients
            mode()
            with torch.no_grad():
                model(**data[3])
        train(model, data, watcher, accumulate=2)
    first, second = read().events("load")
    assert (first.step, second.step) == (1, 2)
    for index, layer in enumerate(first.payload["layers"]):
        count_E = counts[0][index] + counts[1][index]
        assert layer["layer"] == MOE_BLOCKS[family][index]
        assert layer["load"] == pytest.approx((count_E / count_E.sum()).tolist(), abs=1e-12)
        assert layer["tokens"] * k == count_E.sum() and layer["dropped"] == 0 and layer["experts_per_token"] == k
        assert layer["maxvio"] == pytest.approx(max(layer["load"]) * len(count_E) - 1)
        assert layer["alive"] == list(range(len(count_E)))
    assert read().events("train")[-1].payload["tokens"] == tokens


def test_a_whole_model_that_is_computed_again_in_the_backward_pass_counts_once(home: Path, read: Reader) -> None:
    model, ids = build("mixtral"), batches(1)[0]["input_ids"]
    with moescope.watch(model, run="m", home=home, load_every=1, log_every=1) as watcher:
        whole = torch.utils.checkpoint.checkpoint(lambda x: model(input_ids=x, labels=x).loss, ids, use_reentrant=False)
        whole.backward()
        watcher.step()
    assert [layer["tokens"] for layer in read().events("load")[0].payload["layers"]] == [48, 48]
    told = read().events("train")[0].payload
    assert told["tokens"] == 48 and told["loss"] == pytest.approx(whole.item())


def test_effective_experts_are_those_of_the_logits(home: Path, read: Reader) -> None:
    model = build("mixtral", attention_dropout=0.0)
    data = batches(1, padded=True)
    mask = data[0]["attention_mask"].flatten().bool()
    with torch.no_grad():
        logits = model(**data[0], output_router_logits=True).router_logits
    want = [float(torch.distributions.Categorical(logits=item[mask]).entropy().mean().exp()) for item in logits]
    with moescope.watch(model, run="m", home=home, load_every=1) as watcher:
        train(model, data, watcher)
    told = [layer["effective_experts"] for layer in read().events("load")[0].payload["layers"]]
    assert told == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_training_is_bit_for_bit_what_it_is_without(family: str, home: Path, probe: TokenSet) -> None:
    data = batches(6)
    alone, watched = build(family), build(family)
    losses = train(alone, data)
    with moescope.watch(
        watched, run="m", home=home, probe=probe, log_every=1, load_every=1, snapshot_every=2, drift_every=1
    ) as watcher:
        assert train(watched, data, watcher) == losses
    for (name, one), (_, two) in zip(alone.named_parameters(), watched.named_parameters(), strict=True):
        assert torch.equal(one, two), name
    assert watched.training and all(module.training for module in watched.modules())


def hooks_of(model: torch.nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_forward_hooks_always_called")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


@pytest.mark.parametrize("ends_well", [True, False])
def test_no_hook_is_left(ends_well: bool, home: Path, probe: TokenSet) -> None:
    from torch.optim.optimizer import _global_optimizer_pre_hooks

    model = build("mixtral")
    before, optimizers = hooks_of(model), len(_global_optimizer_pre_hooks)
    try:
        with moescope.watch(model, run="m", home=home, probe=probe) as watcher:
            assert hooks_of(model) > before and len(_global_optimizer_pre_hooks) > optimizers
            train(model, batches(1), watcher)
            if not ends_well:
                raise RuntimeError("the loader broke")
    except RuntimeError:
        assert not ends_well
    assert hooks_of(model) == before and len(_global_optimizer_pre_hooks) == optimizers


@pytest.mark.parametrize("family", FAMILIES)
def test_a_snapshot_equals_the_trace_of_a_saved_checkpoint(
    family: str, home: Path, probe: TokenSet, read: Reader, tmp_path: Path
) -> None:
    model = build(family)
    watched = moescope.watch(model, run="m", home=home, probe=probe, snapshot_every=3)
    with torch.autocast("cpu", torch.bfloat16), watched as watcher:
        train(model, batches(3), watcher)
    model.save_pretrained(tmp_path / "m")
    events = read().events("snapshot")
    assert [event.step for event in events] == [0, 3]
    assert [row.step for row in read().store.traces(run=read().run.id)] == [0, 3]
    told = read_trace(read().store.run_folder(read().run.id) / events[-1].payload["path"])
    write_trace(record_trace(open_checkpoint(tmp_path / "m"), probe), tmp_path / "due.safetensors")
    due = read_trace(tmp_path / "due.safetensors")
    assert told.layer_ids == due.layer_ids == tuple(MOE_BLOCKS[family])
    for layer, want in due.layers.items():
        have = told.layers[layer]
        assert have.meta == want.meta
        for name in ("expert_TK", "gate_TK", "logits_TE", "hidden_nd", "margin_T", "entropy_T"):
            assert np.array_equal(getattr(have, name), getattr(want, name), equal_nan=True), (layer, name)
    assert [check["name"] for check in told.meta.self_check if not check["passed"]] == []


def test_what_a_run_says_from_start_to_end(home: Path, read: Reader) -> None:
    model = build("mixtral", output_router_logits=True, router_aux_loss_coef=0.1)
    with moescope.watch(model, run="My first", home=home, steps=5, log_every=2, load_every=0) as watcher:
        losses = train(model, batches(5), watcher)
        watcher.eval(2.5, tokens=100)
    run = read().run
    assert (run.name, run.status, run.step, run.steps, run.job) == ("My first", "finished", 5, 5, None)
    assert run.id == watcher.id and run.preset == "watch"
    started, *_, ended = read().events()
    assert (started.kind, ended.kind) == ("run_started", "run_finished")
    assert started.payload["params"] == sum(weight.numel() for weight in model.parameters())
    bank = model.model.layers[0].mlp.experts
    idle = sum(weight.numel() for weight in bank.parameters()) // 4 * 2 * 2
    assert started.payload["active_params"] == started.payload["params"] - idle
    assert [layer["layer"] for layer in started.payload["layers"]] == [0, 1]
    assert started.payload["config"]["model"]["family"] == "mixtral"
    trains = read().events("train")
    assert [event.step for event in trains] == [1, 2, 4, 5]
    for event in trains:  # the model's own loss, apart from its balance loss
        whole = event.payload["loss"] + event.payload["objectives"]["load_balance"]
        assert whole == pytest.approx(losses[event.step - 1], rel=1e-6) and event.payload["lr"] == 1e-2
    assert ended.payload["eval_loss"] == 2.5 and ended.payload["loss"] == trains[-1].payload["loss"]
    assert not read().events("load", "snapshot")
    assert read().events("eval")[0].payload == {"loss": 2.5, "tokens": 100}


def test_a_loss_of_ones_own_and_the_mean_over_accumulated_passes(home: Path, read: Reader) -> None:
    model = build("olmoe")
    with moescope.watch(model, run="m", home=home, log_every=1) as watcher:
        losses = train(model, batches(4), watcher, accumulate=2)
        model(**batches(1)[0]).loss.backward()
        watcher.step(torch.tensor(1.5), lr=0.3, grad_norm=torch.tensor(2.0))
    first, second, own = (event.payload for event in read().events("train"))
    assert first["loss"] == pytest.approx(sum(losses[:2]) / 2) and second["loss"] == pytest.approx(sum(losses[2:]) / 2)
    assert (own["loss"], own["lr"], own["grad_norm"]) == (1.5, 0.3, 2.0)
    assert read().run.steps == 3


@pytest.mark.parametrize(
    "error, status, said",
    [
        (RuntimeError("the loader broke"), "failed", "RuntimeError: the loader broke"),
        (KeyboardInterrupt(), "stopped", None),
        (SystemExit(0), "stopped", None),
        (SystemExit(3), "failed", "SystemExit: 3"),
    ],
)
def test_an_exception_is_told_and_raised(
    error: BaseException, status: str, said: str | None, home: Path, read: Reader
) -> None:
    model = build("mixtral")
    with pytest.raises(type(error)) as raised, moescope.watch(model, run="m", home=home) as watcher:
        train(model, batches(2), watcher)
        raise error
    assert raised.value is error
    assert (read().run.status, read().run.error) == (status, said)


def test_a_run_is_begun_once_and_not_stepped_outside_of_its_block(home: Path) -> None:
    watcher = moescope.watch(build("mixtral"), run="m", home=home)
    with pytest.raises(InputError, match="outside of the `with` block"):
        watcher.step()
    with watcher, pytest.raises(InputError, match="a watch of its own"):
        watcher.start()


def test_our_own_model_is_watched_too(home: Path, read: Reader) -> None:
    from moescope.model import Batch, loss
    from moescope.train.report import load_payload

    config = ModelConfig(
        vocab_size=97, d_model=16, num_layers=2, num_heads=2, num_experts=4, max_experts=6, d_expert=8, max_seq=16,
        router="top_p", router_config={"p": 0.5},
    )  # fmt: skip
    model = Transformer(config).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ids = torch.randint(0, 97, (3, 10), generator=torch.Generator().manual_seed(0))
    batch = Batch(inputs=ids, valid=torch.ones_like(ids, dtype=torch.bool), target=ids)
    texts = ["some text, of which the vocabulary knows nothing"]
    with moescope.watch(
        model, run="ours", home=home, load_every=1, log_every=1, probe=texts, tokenizer=byte_tokenizer(97)
    ) as watcher:
        output = model(batch)
        due = load_payload(output.records)
        value = loss(output, batch)
        value.backward()
        optimizer.step()
        watcher.step(value)
    (told,) = read().events("load")
    for have, want in zip(told.payload["layers"], due["layers"], strict=True):
        assert have.keys() == want.keys() and have["alive"] == want["alive"] == [0, 1, 2, 3]
        assert have["load"] == pytest.approx(want["load"])
        numbers = [name for name in have if name not in ("load", "alive")]
        assert [have[name] for name in numbers] == pytest.approx([want[name] for name in numbers], rel=1e-6)
    assert read().events("train")[0].payload["loss"] == pytest.approx(value.item())
    assert [event.step for event in read().events("snapshot")] == [0, 1]
    assert read().events("run_started")[0].payload["config"]["model"]["head"] == "next_token"


def test_importing_the_library_imports_no_torch() -> None:
    code = "import sys, moescope, moescope.watching.ended; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"
