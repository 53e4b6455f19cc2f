"""What is captured of a foreign model equals what an independent forward hook sees, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moescope.adapters import open_checkpoint
from moescope.data.base import TokenSet
from moescope.model.batch import Batch
from moescope.trace.recorder import record_trace

FAMILIES = ("mixtral", "olmoe", "qwen2_moe", "qwen3_moe")
MOE_BLOCKS = {"mixtral": (0, 1, 2), "olmoe": (0, 1, 2), "qwen2_moe": (1, 3), "qwen3_moe": (0, 2)}


@contextmanager
def hooked(folder: Path, **options: Any) -> Iterator[tuple[Any, dict[int, tuple[np.ndarray, ...]]]]:
    """The model as transformers opens it, and what its routers return: block to (logits, gates, indices)."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, **options).eval()
    seen: dict[int, tuple[np.ndarray, ...]] = {}

    def hook(name: str) -> Any:
        block = int(name.split(".")[2])
        return lambda module, args, out: seen.__setitem__(block, tuple(part.float().numpy() for part in out))

    for name, module in model.named_modules():
        if type(module).__name__.endswith("TopKRouter"):
            module.register_forward_hook(hook(name))
    with torch.no_grad():
        yield model, seen


def runs(tokens: TokenSet, longest: int) -> list[slice]:
    """Each document in pieces of at most `longest`."""
    edges = np.flatnonzero(np.diff(tokens.doc, prepend=-1, append=-1)).tolist()
    return [slice(at, min(at + longest, end)) for start, end in pairwise(edges) for at in range(start, end, longest)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_a_trace_equals_an_independent_hook_exactly(
    family: str, dtype: torch.dtype, save: Any, tokens: TokenSet
) -> None:
    folder = save(family, dtype=dtype)
    trace = record_trace(open_checkpoint(folder), tokens)
    assert trace.layer_ids == MOE_BLOCKS[family]
    with hooked(folder) as (model, seen):
        for part in runs(tokens, 64):
            model(torch.from_numpy(tokens.inputs[part].astype(np.int64))[None])
            assert sorted(seen) == list(MOE_BLOCKS[family])
            for block, (logits, gates, indices) in seen.items():
                layer = trace.layers[block]
                assert np.array_equal(layer.expert_TK[part], indices)
                assert np.array_equal(layer.gate_TK[part], gates)
                assert layer.logits_TE is not None and np.array_equal(layer.logits_TE[part], logits)
    assert [check["name"] for check in trace.meta.self_check if not check["passed"]] == []
    for layer in trace.layers.values():
        assert len(np.unique(layer.expert_TK)) == layer.meta.num_experts


@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_batch_equals_the_hook_where_it_is_valid_and_routes_padding_nowhere(family: str, save: Any) -> None:
    folder = save(family)
    ids = torch.from_numpy(np.random.default_rng(1).integers(0, 300, (4, 20)))
    valid = torch.arange(20)[None] < torch.tensor([20, 13, 1, 7])[:, None]
    opened = open_checkpoint(folder)
    records = {record.layer: record for record in opened.records(Batch(ids, valid))}
    flat = valid.flatten().numpy()
    with hooked(folder) as (model, seen):
        model(ids, attention_mask=valid.long())
    assert sorted(records) == sorted(seen)
    for block, (logits, gates, indices) in seen.items():
        routing = records[block].routing
        assert np.array_equal(routing.expert_TK.numpy()[flat], indices[flat])
        assert np.array_equal(routing.gate_TK.numpy()[flat], gates[flat])
        assert np.array_equal(routing.logits_TE.numpy()[flat], logits[flat])
        assert not routing.wanted_TK[~valid.flatten()].any() and not routing.sent_TK[~valid.flatten()].any()
        assert not routing.gate_TK[~valid.flatten()].any()
    assert all(check["passed"] for check in opened.self_check())


@pytest.mark.parametrize("family", ["olmoe", "qwen2_moe", "qwen3_moe"])
@pytest.mark.parametrize("norm", [True, False])
def test_gates_sum_to_one_exactly_where_the_flag_says_so(family: str, norm: bool, save: Any, tokens: TokenSet) -> None:
    opened = open_checkpoint(save(family, norm_topk_prob=norm))
    trace = record_trace(opened, tokens)
    for layer in trace.layers.values():
        sums = layer.gate_TK.sum(axis=1)
        assert np.allclose(sums, 1.0, atol=1e-6) if norm else (sums < 0.999).all()
        assert layer.meta.router == ("softmax_topk, renormalised" if norm else "softmax_topk")
    assert all(check["passed"] for check in trace.meta.self_check)


@pytest.mark.parametrize(
    ("options", "blocks"),
    [
        ({"mlp_only_layers": [], "decoder_sparse_step": 1}, (0, 1, 2)),
        ({"mlp_only_layers": [], "decoder_sparse_step": 2}, (1,)),
        ({"mlp_only_layers": [0, 2], "decoder_sparse_step": 1}, (1,)),
        ({"mlp_only_layers": [3], "decoder_sparse_step": 2, "num_hidden_layers": 4}, (1,)),
    ],
)
def test_dense_blocks_are_left_out_and_do_not_shift_the_others(
    options: dict[str, Any], blocks: tuple[int, ...], save: Any, tokens: TokenSet
) -> None:
    opened = open_checkpoint(save("qwen3_moe", **options))
    assert tuple(meta.layer for meta in opened.card.layers) == blocks
    assert [meta.path for meta in opened.card.layers] == [f"model.layers.{block}.mlp.gate" for block in blocks]
    assert record_trace(opened, tokens).layer_ids == blocks


def test_float32_on_request_and_the_stored_dtype_otherwise(save: Any) -> None:
    folder = save("olmoe", dtype=torch.bfloat16)
    assert next(open_checkpoint(folder).module.parameters()).dtype == torch.bfloat16
    assert next(open_checkpoint(folder, dtype="float32").module.parameters()).dtype == torch.float32


def test_tied_embeddings_and_shards_open(save: Any, tokens: TokenSet) -> None:
    whole = record_trace(open_checkpoint(save("olmoe", "whole", tie_word_embeddings=True)), tokens)
    folder = save("olmoe", "shards", tie_word_embeddings=True, shards="40KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    parts = record_trace(open_checkpoint(folder), tokens)
    for block, layer in whole.layers.items():
        assert np.array_equal(layer.gate_TK, parts.layers[block].gate_TK)


@pytest.mark.parametrize("family", FAMILIES)
def test_names_as_in_memory_open_too(family: str, save: Any, tokens: TokenSet, tmp_path: Path) -> None:
    """transformers writes the families' old names unless it is told not to."""
    folder = save(family)
    opened = open_checkpoint(folder)
    opened.module.save_pretrained(tmp_path / "new", save_original_format=False)
    assert not list((tmp_path / "new").glob("*.bin"))
    new = open_checkpoint(tmp_path / "new")
    assert new.card.layers == opened.card.layers and new.card.params == opened.card.params
    stored, reloaded = opened.module.state_dict(), new.module.state_dict()
    assert stored.keys() == reloaded.keys() and all(torch.equal(stored[name], reloaded[name]) for name in stored)
    assert all(check["passed"] for check in record_trace(new, tokens).meta.self_check)


def test_hooks_are_gone_and_flags_are_back_also_after_an_error(save: Any) -> None:
    opened = open_checkpoint(save("mixtral"))
    ids, valid = torch.zeros((1, 3), dtype=torch.int64), torch.ones((1, 3), dtype=torch.bool)
    opened.module.train()
    opened.module.model.layers[1].eval()
    before = [module.training for module in opened.module.modules()]
    opened.records(Batch(ids, valid))

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("broken on purpose")

    opened.module.model.layers[2].mlp.experts.forward = fails
    with pytest.raises(RuntimeError, match="on purpose"):
        opened.records(Batch(ids, valid))
    assert [module.training for module in opened.module.modules()] == before
    for module in opened.module.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("width", [6, 12])
def test_experts_too_odd_for_the_grouped_product_run_one_by_one(
    width: int, dtype: torch.dtype, save: Any, tokens: TokenSet
) -> None:
    folder = save("qwen3_moe", dtype=dtype, moe_intermediate_size=width)
    trace = record_trace(open_checkpoint(folder), tokens)
    assert all(check["passed"] for check in trace.meta.self_check)
    eager = {} if width * dtype.itemsize % 16 == 0 else {"experts_implementation": "eager"}
    with hooked(folder, **eager) as (model, seen):
        for part in runs(tokens, 64):
            model(torch.from_numpy(tokens.inputs[part].astype(np.int64))[None])
            for block, (_, gates, indices) in seen.items():
                assert np.array_equal(trace.layers[block].expert_TK[part], indices)
                assert np.array_equal(trace.layers[block].gate_TK[part], gates)
