"""Our own checkpoints through the adapter: every router checks itself, folders that lie are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from moescope.adapters import inspect_checkpoint, open_checkpoint
from moescope.adapters.ours import TransformerModel, card_of
from moescope.adapters.tokenization import byte_tokenizer
from moescope.data.base import TokenSet
from moescope.errors import InputError
from moescope.model import ModelConfig, Transformer, save_checkpoint
from moescope.routers import ROUTERS
from moescope.trace.recorder import record_trace

SMALL: dict[str, Any] = {
    "vocab_size": 300,
    "d_model": 16,
    "num_layers": 3,
    "num_heads": 2,
    "d_expert": 8,
    "d_dense": 16,
    "num_experts": 6,
    "max_seq": 64,
    "moe_layers": "alternate",
    "leaky_control": True,
}


def small(**options: Any) -> Transformer:
    model = Transformer(ModelConfig(**{**SMALL, **options}))
    with torch.no_grad():
        for layer in model.moe.values():
            if hasattr(layer.router, "weight"):
                layer.router.weight.normal_(0.0, 0.5, generator=torch.Generator().manual_seed(1))
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "ours"
    card = {"name": "Small", "description": "a small model"}
    save_checkpoint(made, small(), byte_tokenizer().to_str(), card)
    return made


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("dead", [False, True])
def test_every_router_passes_its_self_check(router: str, dead: bool, tokens: TokenSet) -> None:
    model = small(router=router)
    if dead:
        model.moe[1].alive_E[2] = False
    opened = TransformerModel(model.train(), card_of(model, router))
    trace = record_trace(opened, tokens)
    assert [check for check in trace.meta.self_check if not check["passed"]] == []
    assert model.training and all(module.training for module in model.modules())
    layer = trace.layers[1]
    assert layer.meta.num_experts == (5 if dead else 6) and layer.meta.router == router
    assert layer.meta.causal == (model.moe[1].router.causal == "yes")
    assert layer.meta.alive == ((0, 1, 3, 4, 5) if dead else None)
    assert len(layer.mean_probs_E) == 6 and not (dead and (layer.expert_TK == 2).any())
    for module in model.modules():
        assert not module._forward_pre_hooks


def test_open_after_save_routes_as_the_model_that_was_saved(folder: Path, tokens: TokenSet) -> None:
    model = small()
    direct = record_trace(TransformerModel(model, card_of(model, "x")), tokens)
    opened = open_checkpoint(folder)
    assert opened.tokenizer is not None and opened.card.tokenizer == "tokenizer.json"
    stored = record_trace(opened, tokens)
    assert stored.layer_ids == direct.layer_ids == (1,)
    assert np.array_equal(stored.layers[1].expert_TK, direct.layers[1].expert_TK)
    assert np.array_equal(stored.layers[1].gate_TK, direct.layers[1].gate_TK)


def test_the_card_says_what_the_checkpoint_is(folder: Path) -> None:
    card = inspect_checkpoint(folder)
    assert (card.name, card.description, card.format, card.family) == ("Small", "a small model", "moescope", "moescope")
    assert (card.kind, card.d_model, card.num_layers, card.vocab_size, card.max_seq) == ("text", 16, 3, 300, 64)
    assert card.params == sum(weight.numel() for weight in small().parameters())
    (meta,) = card.layers
    assert (meta.layer, meta.path, meta.router, meta.num_experts, meta.k) == (
        1,
        "blocks.1.moe.router",
        "topk_softmax",
        6,
        2,
    )
    assert inspect_checkpoint(folder) == open_checkpoint(folder).card


def test_dead_slots_are_not_experts_of_the_card(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "grown", small(max_experts=9), None, {})
    card = inspect_checkpoint(tmp_path / "grown")
    assert card.layers[0].num_experts == 6 and card.tokenizer == "bytes"
    assert open_checkpoint(tmp_path / "grown").tokenizer is not None


@pytest.mark.parametrize(("kind", "given"), [("patches", "digits"), ("vectors", "clusters")])
def test_models_of_patches_and_vectors_refuse_what_they_cannot_read(kind: str, given: str, tokens: TokenSet) -> None:
    config = {"input": kind, "head": "class", "d_input": 5, "num_classes": 3, "vocab_size": 0, "causal": False}
    model = small(**config)
    opened = TransformerModel(model, card_of(model, given))
    with pytest.raises(InputError, match=f"reads {kind}, and the data are text"):
        record_trace(opened, tokens)
    rows = np.zeros((70, 4), np.float32)
    wide = TokenSet(kind=kind, inputs=rows, doc=np.arange(70, dtype=np.int32), labels={}, source={})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="rows of width 5, and the data are of width 4"):
        record_trace(opened, wide)
    long = TokenSet(kind=kind, inputs=rows, doc=np.zeros(70, np.int32), labels={}, source={})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="an item of 70"):
        record_trace(opened, long)


def config(**values: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        plain = json.loads((folder / "config.json").read_text())
        plain["model"].update(values)
        (folder / "config.json").write_text(json.dumps(plain))

    return apply


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        loaded = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
        change(loaded)
        save_file(loaded, folder / "model.safetensors")

    return apply


ALIVE = "blocks.1.moe.alive_E"
LIES: dict[str, tuple[Callable[[Path], None], str]] = {
    "E = 0": (config(num_experts=0), "num_experts = 0"),
    "unknown router": (config(router="evil"), "router = 'evil'"),
    "k > E": (config(router_config={"k": 7}), "k = 7"),
    "width": (config(d_model=32), "has shape"),
    "memory": (config(d_expert=1 << 20), "has shape"),
    "another block": (config(num_layers=4), "lack tensor"),
    "extra tensor": (tensors(lambda t: t.update(evil=torch.zeros(1))), "hold tensor 'evil'"),
    "all dead": (tensors(lambda t: t[ALIVE].fill_(False)), "every expert is dead"),
    "mask is a number": (tensors(lambda t: t.update({ALIVE: torch.ones(6)})), "expected BOOL"),
    "another version": (lambda f: (f / "config.json").write_text('{"moescope_checkpoint": 99}') and None, "version"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lying_folder_of_ours_is_refused(name: str, folder: Path) -> None:
    change, match = LIES[name]
    change(folder)
    for act in (inspect_checkpoint, open_checkpoint):
        with pytest.raises(InputError, match=match) as caught:
            act(folder)
        assert "\n" not in str(caught.value)


def test_weights_that_are_not_finite_are_refused(folder: Path) -> None:
    tensors(lambda t: t["blocks.1.moe.router.weight"].view(-1)[3].fill_(float("nan")))(folder)
    for act in (open_checkpoint, lambda path: inspect_checkpoint(path, weights=True)):
        with pytest.raises(InputError, match=r"blocks\.1\.moe\.router\.weight"):
            act(folder)
