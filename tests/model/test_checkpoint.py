"""Checkpoints: what is saved comes back; complete or absent; hostile folders are refused in one sentence."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from moescope.errors import InputError
from moescope.model import Batch, ModelConfig, Transformer, load_checkpoint, save_checkpoint
from moescope.model.checkpoint import read_config
from router_cases import CASES, Case


def config(**changes: Any) -> ModelConfig:
    small = {
        "vocab_size": 50, "d_model": 16, "num_layers": 2, "num_heads": 2, "num_experts": 4, "max_experts": 5,
        "d_expert": 8, "d_dense": 16, "max_seq": 12, "moe_layers": (1,), "leaky_control": True,
    }  # fmt: skip
    return ModelConfig(**{**small, **changes})


def ids(seed: int = 0) -> Batch:
    inputs = torch.randint(0, 50, (3, 12), generator=torch.Generator().manual_seed(seed))
    return Batch(inputs, torch.ones(3, 12, dtype=torch.bool), label=inputs % 4)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "made", Transformer(config(num_shared_experts=1)), "{}", {"name": "made"})
    return tmp_path / "made"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_is_saved_comes_back_bit_for_bit(case: Case, tmp_path: Path) -> None:
    changes = {"router": case.name, "router_config": case.fit(4).options, "leaky_control": True, "max_seq": 32}
    model = Transformer(config(**changes), seed=3)
    model.train()(ids())
    model.moe[1].alive_E[2] = False
    save_checkpoint(tmp_path / "a", model, '{"tokens": "é"}', {"steps": 3, "why": "test"})
    loaded, tokenizer_json, card = load_checkpoint(tmp_path / "a")
    assert tokenizer_json == '{"tokens": "é"}' and card == {"steps": 3, "why": "test"}
    assert loaded.config == model.config and not loaded.training
    logits = []
    for each in (loaded, model.eval()):
        torch.manual_seed(0)
        logits.append(each(ids()).logits)
    assert torch.equal(*logits)
    assert not loaded.moe[1].alive_E[2]
    learn = {name for name, weight in loaded.named_parameters() if weight.requires_grad}
    assert learn == {name for name, _ in model.named_parameters()}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]


def test_half_precision_halves_the_file_and_leaves_routers_alone(tmp_path: Path) -> None:
    model = Transformer(config())
    save_checkpoint(tmp_path / "low", model, None, {}, dtype=torch.bfloat16)
    stored = load_file(tmp_path / "low" / "model.safetensors")
    for name, tensor in stored.items():
        router, flag = ".router." in name or name.endswith(".shift_E"), name.endswith("alive_E")
        assert tensor.dtype == (torch.bool if flag else torch.float32 if router else torch.bfloat16), name
    wide, tokenizer_json, _ = load_checkpoint(tmp_path / "low")
    assert tokenizer_json is None and wide.norm.weight.dtype == torch.float32
    low, _, _ = load_checkpoint(tmp_path / "low", dtype=None)
    assert low.norm.weight.dtype == torch.bfloat16 and low.moe[1].router.weight.dtype == torch.float32
    assert torch.equal(low.moe[1].router.weight, model.moe[1].router.weight)


def test_loading_takes_no_random_numbers_and_is_independent_of_the_file(saved: Path) -> None:
    state = torch.get_rng_state()
    model, _, _ = load_checkpoint(saved)
    assert torch.equal(torch.get_rng_state(), state)
    before = model(ids()).logits
    (saved / "model.safetensors").write_bytes(b"\0" * (saved / "model.safetensors").stat().st_size)
    assert torch.equal(model(ids()).logits, before)


def test_an_older_checkpoint_is_replaced_and_anything_else_is_not(saved: Path, tmp_path: Path) -> None:
    save_checkpoint(saved, Transformer(config(), seed=7), None, {"name": "newer"})
    assert load_checkpoint(saved)[2] == {"name": "newer"}
    assert not (saved / "tokenizer.json").exists(), "nothing of the older one stays"
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="not overwritten"):
        save_checkpoint(tmp_path / "notes", Transformer(config()), None, {})
    assert (tmp_path / "notes" / "thesis.txt").read_text() == "years of work"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "notes"]


def test_a_failure_while_saving_leaves_what_was_there(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(staging: Path) -> None:
        (staging / "optimizer.safetensors").write_bytes(b"half")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        save_checkpoint(saved, Transformer(config(), seed=7), None, {}, extra=fail)
    assert load_checkpoint(saved)[2] == {"name": "made"}

    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.suffix == ".partial":
            raise OSError("rename failed")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="rename failed"):
        save_checkpoint(saved, Transformer(config(), seed=7), None, {})
    monkeypatch.undo()
    assert load_checkpoint(saved)[2] == {"name": "made"}
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_checkpoint(saved.parent / "nan", Transformer(config()), None, {"loss": float("nan")})
    assert [path.name for path in saved.parent.iterdir()] == ["made"]


def test_extra_files_appear_with_the_rest(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a", Transformer(config()), None, {}, extra=lambda at: (at / "x").mkdir() or None)
    assert (tmp_path / "a" / "x").is_dir()


def edit_config(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        plain = json.loads((folder / "config.json").read_text())
        change(plain)
        (folder / "config.json").write_text(json.dumps(plain))

    return apply


def edit_tensors(change: Callable[[dict[str, Tensor]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return apply


def model_field(name: str, value: object) -> Callable[[Path], None]:
    return edit_config(lambda plain: plain["model"].update({name: value}))


def fill(name: str, value: float) -> Callable[[Path], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[name].view(-1)[-1] = value

    return edit_tensors(change)


def put(name: str, tensor: Tensor) -> Callable[[Path], None]:
    return edit_tensors(lambda tensors: tensors.update({name: tensor}))


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


class _Attack:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch pwned",)


ROUTER = "blocks.1.moe.router.weight"
HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "config is not JSON": (write("config.json", b"{"), "not valid JSON"),
    "config is deep": (write("config.json", b"[" * 100_000), "nested|not valid JSON"),
    "config is a list": (write("config.json", b"[]"), "lacks `moescope_checkpoint`"),
    "config is huge": (write("config.json", b" " * (17 << 20)), "larger than"),
    "config is not UTF-8": (write("config.json", b'{"a": "\xff"}'), "UTF-8"),
    "config of another program": (write("config.json", b'{"architectures": ["X"]}'), "lacks `moescope_checkpoint`"),
    "future version": (edit_config(lambda p: p.update(moescope_checkpoint=2)), "version 2"),
    "model is text": (edit_config(lambda p: p.update(model="gpt")), "must be tables"),
    "no experts": (model_field("num_experts", 0), "num_experts = 0"),
    "a billion layers": (model_field("num_layers", 10**9), "num_layers"),
    "a vast model": (model_field("d_model", 1 << 20), "shape|d_model"),
    "slots below experts": (model_field("max_experts", 3), "max_experts = 3"),
    "an unknown router": (model_field("router", "__import__"), "router"),
    "a bad router option": (model_field("router_config", {"k": 0}), "k = 0"),
    "k above the experts": (model_field("router_config", {"k": 6}), "k = 6"),
    "an unknown field": (model_field("run", "rm"), "run"),
    "layers out of range": (model_field("moe_layers", [7]), "moe_layers"),
    "odd heads": (model_field("num_heads", 16), "num_heads"),
    "not causal, without leave": (
        edit_config(lambda p: p["model"].update(router="expert_choice", leaky_control=False)),
        "later tokens",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no such file"),
    "truncated weights": (truncate, "truncated"),
    "a header that lies": (write("model.safetensors", struct.pack("<Q", 1 << 40) + b"{}"), "header"),
    "a pickle": (write("model.safetensors", pickle.dumps(_Attack())), "pickle"),
    "an empty file": (write("model.safetensors", b""), "not a safetensors file"),
    "a missing tensor": (edit_tensors(lambda t: t.__delitem__(ROUTER)), "missing"),
    "a tensor too many": (put("blocks.9.evil", torch.zeros(1)), "does not belong"),
    "a wrong shape": (put(ROUTER, torch.zeros(5, 17)), r"shape \[5, 17\]"),
    "a wrong dtype": (put(ROUTER, torch.zeros(5, 16, dtype=torch.int64)), "I64"),
    "a mask of floats": (put("blocks.1.moe.alive_E", torch.ones(5)), "F32, expected BOOL"),
    "NaN": (fill(ROUTER, float("nan")), "not finite"),
    "infinity": (fill("norm.weight", float("inf")), "not finite"),
    "all dead": (put("blocks.1.moe.alive_E", torch.zeros(5, dtype=torch.bool)), "dead"),
    "a tokenizer of bytes": (write("tokenizer.json", b"\xff\xfe"), "UTF-8"),
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_hostile_folders_are_refused_in_one_sentence(attack: str, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved.parent)
    prepare, why = HOSTILE[attack]
    prepare(saved)
    with pytest.raises(InputError, match=why) as refused:
        load_checkpoint(saved)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400
    assert str(saved.parent) not in str(refused.value)
    assert [path.name for path in saved.parent.iterdir()] == ["made"]


def test_the_config_is_read_without_weights(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    model_config, card = read_config(saved)
    assert model_config == config(num_shared_experts=1) and card == {"name": "made"}
