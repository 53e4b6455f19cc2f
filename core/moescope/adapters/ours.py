"""Our own checkpoints, and a model in training: the layers record themselves, and the record is checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from moescope.adapters.card import Card, TokenizerKind
from moescope.adapters.inspection import text_tokenizer
from moescope.adapters.model import OpenModel
from moescope.adapters.selfcheck import COMMON, SelfCheck, check_common, differing_rows
from moescope.adapters.tokenization import byte_tokenizer, parse_tokenizer
from moescope.adapters.weights import Weights, check_finite, find_weights
from moescope.data.base import Kind, LabelSource
from moescope.errors import InputError
from moescope.files import shown
from moescope.model.batch import Batch
from moescope.model.checkpoint import load_checkpoint
from moescope.model.checkpoint import read_config as read_model_config
from moescope.model.config import ModelConfig
from moescope.model.layers import handed_slots
from moescope.model.transformer import Transformer
from moescope.objectives.base import LayerRecord
from moescope.routers.base import RouterContext, Routing
from moescope.trace.schema import LayerMeta

KINDS: Final[dict[str, Kind]] = {"tokens": "text", "patches": "patches", "vectors": "vectors"}
TITLES: Final = {
    **COMMON,
    "executed": "the experts were handed exactly the recorded experts, gates and drops ({rows} rows).",
    "repeated": "each router, run again on the recorded input, decided the same bit for bit ({rows} rows).",
}


class TransformerModel(OpenModel):
    """Our model, from a checkpoint or in training. Its layers say what they did; what they said is verified.

    Give a model in training a `card` from `card_of`; its training flags and gradients are left as they were.
    """

    module: Transformer

    def __init__(self, module: Transformer, card: Card, tokenizer: Tokenizer | None = None) -> None:
        random = any("deterministic_evaluation" in layer.router.breaks for layer in module.moe.values())
        titles = {name: title for name, title in TITLES.items() if not (random and name == "repeated")}
        super().__init__(card, module, tokenizer, SelfCheck(titles))

    @property
    def label(self) -> LabelSource | None:
        return self.module.config.label

    def records(self, batch: Batch) -> list[LayerRecord]:
        self.require_readable(batch)
        batch = batch.to(self.device)
        asked: dict[int, tuple[Tensor, RouterContext]] = {}
        executed: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        with self._evaluating(), self._watched(asked, executed):
            records = list(self.module(batch).records)
            expected = {meta.layer: self._k(meta.layer) for meta in self.layers}
            times = Counter(record.layer for record in records)
            check_common(self._check, records, expected, times, int(batch.valid.sum()))
            for record in records:
                self._verify(record, asked.get(record.layer), executed.get(record.layer))
        return records

    def _k(self, layer: int) -> int | None:
        moe = self.module.moe[layer]
        k = moe.router.k
        return None if k is None else min(k, int(moe.alive_E.sum()))

    @contextmanager
    def _watched(
        self, asked: dict[int, tuple[Tensor, RouterContext]], executed: dict[int, tuple[Tensor, Tensor, Tensor]]
    ) -> Iterator[None]:
        def ask(layer: int, module: nn.Module, args: tuple[Any, ...]) -> None:
            asked[layer] = (args[0], args[1])

        def execute(layer: int, module: nn.Module, args: tuple[Any, ...]) -> None:
            executed[layer] = (args[1], args[2], args[3])

        handles = []
        try:
            for layer, moe in self.module.moe.items():
                handles.append(moe.router.register_forward_pre_hook(partial(ask, layer)))
                handles.append(moe.bank.register_forward_pre_hook(partial(execute, layer)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _verify(
        self,
        record: LayerRecord,
        asked: tuple[Tensor, RouterContext] | None,
        executed: tuple[Tensor, Tensor, Tensor] | None,
    ) -> None:
        routing, where = record.routing, f"in block {record.layer}"
        rows = routing.valid_T.shape[0]
        told = (routing.expert_TK, routing.gate_TK, routing.sent_TK)
        due = told if routing.slots is None or asked is None else handed_slots(routing.slots, asked[1])
        wrong = rows if executed is None else max(map(differing_rows, due, executed))
        self._check.note("executed", rows=len(due[0]), faults=wrong, where=where)
        router = self.module.moe[record.layer].router
        if "deterministic_evaluation" in router.breaks:
            return
        wrong = rows
        if asked is not None and torch.equal(asked[0], record.input_Td):
            again: Routing = router.forward(record.input_Td, asked[1])
            same = (again.expert_TK, again.gate_TK, again.sent_TK, again.wanted_TK, again.logits_TE)
            wrong = max(map(differing_rows, (*told, routing.wanted_TK, routing.logits_TE), same))
        self._check.note("repeated", rows=rows, faults=wrong, where=where)


def layers_of(model: Transformer) -> tuple[LayerMeta, ...]:
    """The MoE layers of our model. Dead slots are not experts; k is what is left of it where fewer are alive."""
    made = []
    for layer, moe in model.moe.items():
        ids = moe.alive_E.nonzero().flatten().tolist()
        alive = len(ids)
        made.append(
            LayerMeta(
                layer=layer,
                path=f"blocks.{layer}.moe.router",
                router=model.config.router,
                num_experts=alive,
                k=None if moe.router.k is None else min(moe.router.k, alive),
                causal=moe.router.causal == "yes",
                alive=None if ids == list(range(alive)) else tuple(ids),
            )
        )
    return tuple(made)


def card_of(
    model: Transformer,
    name: str,
    *,
    tokenizer: TokenizerKind = "none",
    description: str = "",
    size_bytes: int = 0,
    dtype: str | None = None,
    problems: tuple[str, ...] = (),
) -> Card:
    """The card of a model of ours; `dtype` None reads it off the model."""
    config = model.config
    weights = list(model.parameters())
    return Card(
        name=name,
        description=description,
        format="moescope",
        family="moescope",
        kind=KINDS[config.input],
        params=sum(weight.numel() for weight in weights),
        dtype=dtype or {torch.bfloat16: "BF16", torch.float16: "F16"}.get(weights[0].dtype, "F32"),
        d_model=config.d_model,
        num_layers=config.num_layers,
        layers=layers_of(model),
        max_seq=config.max_seq,
        vocab_size=config.vocab_size,
        d_input=config.d_input,
        tokenizer=tokenizer,
        size_bytes=size_bytes,
        problems=problems,
    )


def inspect_ours(folder: Path) -> tuple[Card, Weights]:
    """Card and headers of a checkpoint folder of ours; of the weights only the alive masks are read. `InputError`."""
    config, about = read_model_config(folder)
    weights = find_weights(folder)
    model = skeleton(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in sorted(expected.keys() ^ weights.entries.keys()):
        fault = "lack" if name in expected else "hold"
        raise InputError(f"{folder.name}: config.json does not fit the weights, which {fault} tensor {shown(name)}.")
    for name, shape in expected.items():
        there = weights.entries[name].shape
        if there != shape:
            fault = f"tensor {shown(name)} has shape {list(there)}, but config.json says {list(shape)}"
            raise InputError(f"{folder.name}: {fault}.")
    for layer, moe in model.moe.items():
        moe.alive_E = _alive(weights, f"blocks.{layer}.moe.alive_E")
    kind: TokenizerKind = "none"
    problems: list[str] = []
    if config.input == "tokens":
        kind, problems = text_tokenizer(folder, config.vocab_size)
    card = card_of(
        model,
        str(about.get("name") or folder.name)[:200],
        tokenizer=kind,
        description=str(about.get("description") or "")[:2000],
        size_bytes=weights.size_bytes,
        dtype=weights.dtype,
        problems=tuple(problems),
    )
    return card, weights


def skeleton(config: ModelConfig) -> Transformer:
    """The model without weights (on the meta device)."""
    with torch.device("meta"):
        return Transformer(config, seed=None)


def _alive(weights: Weights, name: str) -> Tensor:
    entry, path = weights.entries[name], weights.file_of[name]
    if entry.dtype != "BOOL":
        raise InputError(f"{path.name}: tensor {shown(name)} is {entry.dtype}, expected BOOL.")
    with path.open("rb") as file:
        file.seek(entry.start)
        alive = np.frombuffer(file.read(entry.size), np.uint8) != 0
    if not alive.any():
        raise InputError(f"{path.name}: every expert is dead in {shown(name)}.")
    return torch.from_numpy(alive)


def open_ours(folder: Path, dtype: torch.dtype | None, device: str | torch.device) -> TransformerModel:
    """Open a checkpoint folder of ours; `dtype` None keeps the stored one. Raises `InputError`."""
    card, weights = inspect_ours(folder)
    check_finite(weights)
    model, text, _ = load_checkpoint(folder, dtype)
    tokenizer = parse_tokenizer(text) if text is not None and card.kind == "text" else None
    if tokenizer is None and card.tokenizer == "bytes":
        tokenizer = byte_tokenizer(card.vocab_size)
    return TransformerModel(model.to(device), card, tokenizer)
