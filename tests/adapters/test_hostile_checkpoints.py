"""Checkpoints that lie, each refused in one sentence before any of their weights is used. Runnable attacks."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from moescope.adapters import inspect_checkpoint, open_checkpoint
from moescope.adapters.tokenization import parse_tokenizer
from moescope.data.pieces import Encoder
from moescope.errors import InputError

Change = Callable[[Path], None]


def refuse(path: Path, match: str, act: Callable[[Path], Any] = inspect_checkpoint) -> None:
    with pytest.raises(InputError, match=match) as caught:
        act(path)
    sentence = str(caught.value)
    assert "\n" not in sentence and len(sentence) < 320 and sentence.endswith(".")


def tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Change:
    def apply(folder: Path) -> None:
        path = folder / "model.safetensors"
        loaded = {name: tensor.clone() for name, tensor in load_file(path).items()}
        change(loaded)
        save_file(loaded, path, metadata={"format": "pt"})

    return apply


def config(**values: Any) -> Change:
    def apply(folder: Path) -> None:
        path = folder / "config.json"
        plain = json.loads(path.read_text()) | values
        path.write_text(json.dumps({key: value for key, value in plain.items() if value is not ...}))

    return apply


ROUTER = "model.layers.0.block_sparse_moe.gate.weight"
EXPERT = "model.layers.0.block_sparse_moe.experts.{}.w1.weight"


def drop(name: str) -> Change:
    return tensors(lambda loaded: loaded.pop(name))


def rename_bin(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def renamed_pickle(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps({"a": 1}))


def sparse_header(folder: Path) -> None:
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 200_000_000) + b"{")
        file.truncate(200_000_100)


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def index(table: Any) -> Change:
    def apply(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps(table))

    return apply


INSPECTED: dict[str, tuple[Change, str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    "config is a list": (lambda folder: (folder / "config.json").write_text("[]") and None, "not a table"),
    "config is not JSON": (lambda folder: (folder / "config.json").write_text("{") and None, "not valid JSON"),
    "config is deep": (
        lambda folder: (folder / "config.json").write_text("[" * 9999 + "]" * 9999) and None,
        "nested",
    ),
    "no model_type": (config(model_type=...), "lacks `model_type`; known are mixtral, olmoe, qwen2_moe, qwen3_moe"),
    "unknown family": (config(model_type="llama"), "model_type 'llama', which is not in the table; known are mixtral"),
    "model_type is a list": (config(model_type=["mixtral"]), "not in the table"),
    "quantised": (config(quantization_config={"quant_method": "fp8"}), "quantised"),
    "E = 0": (config(num_local_experts=0), "num_local_experts = 0, but the number of experts must be at least 1"),
    "E missing": (config(num_local_experts=...), "does not say the number of experts"),
    "E negative": (config(num_local_experts=-8), "not a whole number"),
    "E is a text": (config(num_local_experts="8"), "not a whole number"),
    "E is true": (config(num_local_experts=True), "not a whole number"),
    "E twice": (config(num_experts=4), "contradicts itself"),
    "E too large": (config(num_local_experts=9), "weights|shape"),
    "E absurd": (config(num_local_experts=10**30), "not a whole number"),
    "k = 0": (config(num_experts_per_tok=0), "must be at least 1"),
    "k > E": (config(num_experts_per_tok=9), "9 experts per token are more than the 8 experts"),
    "width": (config(hidden_size=64), "has shape .* but config.json says"),
    "expert width": (config(intermediate_size=49), "has shape"),
    "vocabulary": (config(vocab_size=10**9), "has shape"),
    "blocks": (config(num_hidden_layers=4), "says 4 blocks, the weights hold 3"),
    "blocks absurd": (config(num_hidden_layers=10**9), "blocks, the weights hold 3"),
    "router lost": (drop(ROUTER), "blocks 0, 1, 2 have experts, the weights hold routers for 1, 2"),
    "expert lost": (drop(EXPERT.format(5)), "8 experts, the weights of block 0 hold 7"),
    "expert gained": (tensors(lambda t: t.update({EXPERT.format(8): t[EXPERT.format(0)].clone()})), "hold 9"),
    "experts lost": (
        tensors(lambda t: [t.pop(name) for name in list(t) if name.startswith("model.layers.1.block_sparse_moe.exp")]),
        "no experts for block 1",
    ),
    "router shape": (tensors(lambda t: t.update({ROUTER: t[ROUTER][:7].clone()})), "has shape"),
    "only a pickle": (rename_bin, "only as pickles"),
    "pickle renamed": (renamed_pickle, "pickle"),
    "200 MB header": (sparse_header, "claims 200,000,000 bytes"),
    "truncated": (truncated, "truncated"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors"),
    "index elsewhere": (index({"weight_map": {"a": "../secret.safetensors"}}), "outside"),
    "index absolute": (index({"weight_map": {"a": "/etc/passwd"}}), "absolute"),
    "index in a folder": (index({"weight_map": {"a": "sub/x.safetensors"}}), "no safetensors file of it"),
    "index of a pickle": (index({"weight_map": {"a": "x.bin"}}), "no safetensors file of it"),
    "index without a table": (index({}), "no table `weight_map`"),
    "index lies": (index({"weight_map": {"a": "model-00001-of-00002.safetensors"}}), "lacks tensor 'a'"),
    "shard missing": (index({"weight_map": {"a": "model-00002-of-00002.safetensors"}}), "is missing"),
}


@pytest.mark.parametrize("name", INSPECTED)
def test_a_lying_folder_is_refused_on_inspection(name: str, save: Any) -> None:
    change, match = INSPECTED[name]
    folder = save("mixtral")
    change(folder)
    before = sorted(path.name for path in folder.parent.rglob("*"))
    refuse(folder, match)
    refuse(folder, match, open_checkpoint)
    assert sorted(path.name for path in folder.parent.rglob("*")) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", [ROUTER, EXPERT.format(3), "lm_head.weight"])
def test_weights_that_are_not_finite_are_refused_by_name(
    name: str, value: float, dtype: torch.dtype, save: Any
) -> None:
    folder = save("mixtral", num_hidden_layers=1)

    def poison(loaded: dict[str, torch.Tensor]) -> None:
        for key in loaded:
            loaded[key] = loaded[key].to(dtype)
        loaded[name].view(-1)[-1] = value

    tensors(poison)(folder)
    inspect_checkpoint(folder)
    refuse(folder, f"{name.replace('.', '[.]')}' holds values that are NaN or infinite", open_checkpoint)
    refuse(folder, "NaN", lambda path: inspect_checkpoint(path, weights=True))


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_every_finite_bit_pattern_passes_and_no_other(dtype: torch.dtype, tmp_path: Path) -> None:
    """Against torch, over all patterns of up to 16 bits (and their float32 counterparts)."""
    from moescope.adapters.weights import check_finite, find_weights

    if dtype.itemsize == 1:
        bits = torch.arange(256, dtype=torch.uint8).view(dtype)
    elif dtype.itemsize == 2:
        bits = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    else:
        bits = (torch.arange(1 << 16, dtype=torch.int64) << 16).to(torch.uint32).view(dtype)
    finite = torch.isfinite(bits.float())
    save_file({"x": bits[finite].clone()}, tmp_path / "model.safetensors")
    check_finite(find_weights(tmp_path))
    for value in bits[~finite][:: max(1, int((~finite).sum()) // 20)]:
        save_file({"x": torch.stack([bits[finite][0], value])}, tmp_path / "model.safetensors")
        with pytest.raises(InputError, match="NaN or infinite"):
            check_finite(find_weights(tmp_path))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (config(head_dim=10**8), "describes .* parameters, the weights hold"),
        (config(num_attention_heads=10**6), "parameters|cannot build"),
        (config(num_attention_heads=0), "cannot build"),
        (config(hidden_act="os.system"), "cannot build"),
        (config(rope_parameters={"rope_type": "../../x"}), "cannot build"),
        (config(num_key_value_heads=1), "mismatched keys|do not fit|cannot build"),
        (drop("model.norm.weight"), "missing keys 'model.norm.weight'"),
        (drop("model.layers.2.self_attn.q_proj.weight"), "missing keys"),
        (tensors(lambda t: t.update({"model.extra": torch.zeros(1)})), "unexpected keys 'model.extra'"),
    ],
)
def test_what_headers_cannot_show_is_refused_on_opening(change: Change, match: str, save: Any) -> None:
    folder = save("mixtral")
    change(folder)
    started = time.monotonic()
    refuse(folder, match, open_checkpoint)
    assert time.monotonic() - started < 20


def test_code_and_references_in_a_checkpoint_are_not_followed(save: Any, tmp_path: Path) -> None:
    folder = save("mixtral")
    ran = tmp_path / "ran"
    (folder / "modeling_evil.py").write_text(f"import pathlib\npathlib.Path({str(ran)!r}).touch()\nclass M: pass\n")
    (folder / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "some/where", "peft_type": "LORA"})
    )
    config(
        auto_map={"AutoModelForCausalLM": "modeling_evil.M", "AutoConfig": "modeling_evil.M"},
        _name_or_path="some/where",
        _attn_implementation="kernels-community/evil",
        _experts_implementation="evil",
        transformers_weights="../other.safetensors",
    )(folder)
    opened = open_checkpoint(folder)
    assert not ran.exists() and opened.card.family == "mixtral"
    assert opened.module.config._attn_implementation == "sdpa"
    assert opened.module.config._experts_implementation != "evil"


def test_text_without_a_tokenizer_is_bytes_and_says_so(save: Any) -> None:
    folder = save("mixtral")
    opened = open_checkpoint(folder)
    assert opened.card.tokenizer == "bytes" and "UTF-8 bytes" in opened.card.problems[0]
    assert opened.tokenizer is not None
    text = "".join(map(chr, range(0x20, 0x2FF))) + "\n\t€😀"
    encoded = opened.tokenizer.encode(text)
    assert encoded.ids == list(text.encode()) and opened.tokenizer.decode(encoded.ids) == text
    assert [text[start:end] for start, end in encoded.offsets[:5]] == list(text[:5])
    from moescope.data.encode import encode
    from moescope.data.load import pasted
    from moescope.trace.recorder import record_trace

    found = encode(pasted(text), opened.tokenizer, 10_000, {})
    assert found.inputs.tolist() == list(text.encode())
    check = record_trace(opened, found).meta.self_check[-1]
    assert check["passed"] and "fed as its bytes" in check["detail"]


@pytest.mark.parametrize("vocab_size", [2, 40, 99, 128, 255])
def test_a_vocabulary_smaller_than_bytes_lumps_unusual_bytes_and_says_so(vocab_size: int, save: Any) -> None:
    from moescope.data.encode import encode
    from moescope.data.load import pasted
    from moescope.trace.recorder import record_trace

    opened = open_checkpoint(save("mixtral", vocab_size=vocab_size))
    assert f"only {vocab_size} token ids" in opened.card.problems[0]
    text = "The rain, in\tSpain: Größe 12€\n"
    found = encode(pasted(text), opened.tokenizer, 10_000, {})
    assert len(found.inputs) == len(text.encode()) and found.inputs.max() < vocab_size
    assert b"".join(text.encode()[a:b] for a, b in zip(found.start, found.end, strict=True)) == text.encode()
    usual = [found.inputs[text.index(letter)] for letter in "e n"]
    assert vocab_size == 2 or len(set(usual)) == 3
    assert record_trace(opened, found).num_tokens == len(found.inputs)


def test_a_tokenizer_of_another_kind_is_not_guessed(save: Any) -> None:
    folder = save("mixtral")
    (folder / "tokenizer.model").write_bytes(b"x")
    assert "tokenizer.model is not read" in inspect_checkpoint(folder).problems[0]
    assert open_checkpoint(folder).tokenizer is None


@pytest.mark.parametrize("text", ["{}", "[]", "not json", '{"model": {"type": "BPE"}}', "\ud800"])
def test_a_broken_tokenizer_is_refused(text: str, save: Any) -> None:
    folder = save("mixtral")
    (folder / "tokenizer.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    refuse(folder, "tokenizer.json", open_checkpoint)


def test_token_ids_beyond_the_vocabulary_are_refused(save: Any) -> None:
    from moescope.model.batch import Batch

    opened = open_checkpoint(save("mixtral"))
    ids = torch.tensor([[1, 300]])
    with pytest.raises(InputError, match="knows the token ids 0 to 299, but the data hold token id 300"):
        opened.records(Batch(ids, torch.ones_like(ids, dtype=torch.bool)))
    with pytest.raises(InputError, match="reads token ids"):
        opened.records(Batch(torch.zeros(1, 2, 3), torch.ones((1, 2), dtype=torch.bool)))


def test_what_path_means(save: Any, tmp_path: Path) -> None:
    folder = save("mixtral", "inner/model")
    for path in (folder, folder.parent, folder / "model.safetensors"):
        assert inspect_checkpoint(path).name == "model"
    shutil.copy(folder / "model.safetensors", tmp_path / "lone.safetensors")
    refuse(tmp_path / "lone.safetensors", "weights only")
    refuse(tmp_path / "nothing", "no such folder")
    refuse(folder / "config.json", "is a file")
    shutil.copytree(folder, folder.parent / "other")
    refuse(folder.parent, "2 folders in it have one")


def test_inspection_needs_neither_torch_nor_transformers(save: Any) -> None:
    folder = save("qwen3_moe")
    code = (
        "import sys; from moescope.adapters import inspect_checkpoint;"
        f"inspect_checkpoint({str(folder)!r}, weights=True);"
        "print([m for m in ('torch', 'transformers', 'safetensors', 'tokenizers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_card_says_what_the_checkpoint_is(save: Any) -> None:
    card = inspect_checkpoint(save("qwen3_moe", "tiny"))
    assert (card.name, card.format, card.family, card.kind) == ("tiny", "transformers", "qwen3_moe", "text")
    assert (card.d_model, card.num_layers, card.max_seq, card.vocab_size, card.dtype) == (32, 3, 64, 300, "F32")
    assert [(meta.layer, meta.num_experts, meta.k) for meta in card.layers] == [(0, 8, 2), (2, 8, 2)]
    opened = open_checkpoint(save("qwen3_moe", "tiny2"))
    assert card.params == sum(weight.numel() for weight in opened.module.parameters())
    assert np.isclose(card.size_bytes, 4 * card.params, rtol=0.1)


@pytest.mark.parametrize(
    ("part", "value", "words"),
    [
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "/////wAA"}, "cannot be read"),
        ("model", {"type": "BPE", "vocab": {"a": 2**32 - 1}, "merges": []}, "token id 4,294,967,295"),
    ],
    ids=["panics", "an id that needs 32 GB"],
)
def test_tokenizers_that_panic_or_take_all_memory_are_refused(part: str, value: Any, words: str) -> None:
    plain = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}
    with pytest.raises(InputError, match=words):
        parse_tokenizer(json.dumps({**plain, part: value}))


def test_a_tokenizer_that_fails_on_text_is_one_sentence() -> None:
    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "absent"}
    tokenizer = parse_tokenizer(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    with pytest.raises(InputError, match="cannot encode the text"):
        Encoder(tokenizer).encode(["b"])


def test_a_tokenizer_with_a_catastrophic_pattern_ends_in_one_sentence() -> None:
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}
    plain = {"version": "1.0", "added_tokens": [], "pre_tokenizer": split, "model": model}
    with pytest.raises(InputError, match="cannot encode the text"):
        Encoder(parse_tokenizer(json.dumps(plain))).encode(["a" * 60 + "b"])
