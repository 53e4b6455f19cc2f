"""Tiny random models of transformers in training, and the log that a watched run leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from moescope.events import Event
from moescope.store import RunRow, Store

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "num_experts_per_tok": 2,
    "attention_dropout": 0.1,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "use_cache": False,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "intermediate_size": 48},
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
        "num_hidden_layers": 3,
        "head_dim": 8,
    },
}
MOE_BLOCKS = {"mixtral": [0, 1], "olmoe": [0, 1], "qwen2_moe": [1, 3], "qwen3_moe": [0, 2]}


def build(family: str, **options: Any) -> Any:
    """A random model of the family, in training mode, whose routers reach every expert."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**SHAPE, **FAMILIES[family], **options}))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0.0, 0.3 if name.endswith("mlp.gate.weight") else 0.15)
    return model.train()


def batches(count: int, rows: int = 4, length: int = 12, padded: bool = False) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    made = []
    for _ in range(count):
        ids = torch.randint(0, 97, (rows, length), generator=generator)
        batch = {"input_ids": ids, "labels": ids.clone()}
        if padded:
            sizes = torch.randint(1, length + 1, (rows, 1), generator=generator)
            batch["attention_mask"] = (torch.arange(length)[None] < sizes).long()
            batch["labels"] = ids.where(batch["attention_mask"] > 0, -100)
        made.append(batch)
    return made


def train(model: Any, data: list[dict[str, torch.Tensor]], watcher: Any = None, accumulate: int = 1) -> list[float]:
    """A plain loop with dropout; the losses of its passes."""
    torch.manual_seed(7)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for index, batch in enumerate(data):
        loss = model(**batch).loss
        (loss / accumulate).backward()
        losses.append(loss.item())
        if (index + 1) % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
            if watcher is not None:
                watcher.step()
    return losses


class Read:
    """What the store of a home says of its only run."""

    def __init__(self, home: Path) -> None:
        self.store = Store(home)

    @property
    def run(self) -> RunRow:
        (row,) = [row for row in self.store.runs() if row.origin == "run"]
        return row

    def events(self, *kinds: str) -> list[Event]:
        return [event for event in self.store.events_after(0, self.run.id) if event.kind in kinds or not kinds]
