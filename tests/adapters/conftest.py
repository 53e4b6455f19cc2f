"""Tiny foreign checkpoints with random weights, saved by transformers itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moescope.data.base import TokenSet

SHAPE = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "num_experts_per_tok": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 8, "intermediate_size": 48},
    "olmoe": {"num_experts": 8, "intermediate_size": 48, "num_experts_per_tok": 3},
    "qwen2_moe": {
        "num_experts": 6,
        "intermediate_size": 48,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 40,
        "decoder_sparse_step": 2,
        "num_hidden_layers": 4,
    },
    "qwen3_moe": {
        "num_experts": 8,
        "intermediate_size": 48,
        "moe_intermediate_size": 24,
        "mlp_only_layers": [1],
        "head_dim": 8,
    },
}
Saver = Callable[..., Path]


def build(family: str, seed: int = 0, **options: Any) -> Any:
    """A random model of the family. Router weights are wide enough for every expert to be chosen."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{**SHAPE, **FAMILIES[family], **options})
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0.0, 0.3 if name.endswith("mlp.gate.weight") else 0.15)
    return model


@pytest.fixture
def save(tmp_path: Path) -> Saver:
    """save(family, name="m", dtype=None, shards="5GB", **config options) -> folder."""

    def make(family: str, name: str = "m", *, dtype: Any = None, shards: str = "5GB", **options: Any) -> Path:
        from transformers.utils import logging

        logging.disable_progress_bar()
        model = build(family, **options)
        folder = tmp_path / name
        (model if dtype is None else model.to(dtype)).save_pretrained(folder, max_shard_size=shards)
        return folder

    return make


@pytest.fixture
def edit() -> Callable[..., None]:
    """edit(folder, key=value, ...): change config.json; a value of ... removes the key."""

    def change(folder: Path, **values: Any) -> None:
        path = folder / "config.json"
        plain = json.loads(path.read_text()) | values
        path.write_text(json.dumps({key: value for key, value in plain.items() if value is not ...}))

    return change


@pytest.fixture
def tokens() -> TokenSet:
    """Documents of 1, 64, 100, 7, 7 and 30 random tokens: shorter than, equal to and longer than a sequence."""
    lengths = [1, 64, 100, 7, 7, 30]
    total = sum(lengths)
    ids = np.random.default_rng(0).integers(0, 256, total).astype(np.int32)
    ends = np.arange(1, total + 1, dtype=np.int32)
    return TokenSet(
        kind="text",
        inputs=ids,
        doc=np.repeat(np.arange(len(lengths)), lengths).astype(np.int32),
        labels={},
        source={"corpus": "random", "synthetic": True, "documents": [f"d{i}" for i in range(len(lengths))]},
        text=bytes(total),
        start=ends - 1,
        end=ends,
    )
