"""Foreign checkpoints: transformers runs the model, hooks take what its routers and experts saw and did.

Hooks stand at module paths and are keyed by block. What the experts were called with is what counts; the router's own
output is compared with it, and with a recomputation from the captured input (`rules.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from moescope.adapters.architectures import Architecture
from moescope.adapters.card import Card
from moescope.adapters.inspection import architecture_of, inspect_checkpoint, moe_layers_on_disk, read_config
from moescope.adapters.model import OpenModel
from moescope.adapters.rules import RULES
from moescope.adapters.selfcheck import COMMON, SelfCheck, check_common, differing_rows
from moescope.adapters.tokenization import byte_tokenizer, load_tokenizer
from moescope.adapters.weights import Weights, check_finite, find_weights
from moescope.errors import InputError
from moescope.files import shown
from moescope.model.batch import Batch
from moescope.objectives.base import LayerRecord
from moescope.routers.base import Routing

TITLES: Final = {
    **COMMON,
    "executed": "the experts were called with exactly the router's indices and gates ({rows} rows).",
    "logits": "router logits recomputed from captured input and weights are equal bit for bit ({rows} rows).",
    "selection": "the top-k of the recomputed score is what was chosen ({rows} rows).",
    "gates": "gates recomputed from the logits are equal bit for bit ({rows} rows).",
    "path": "plain PyTorch modules ran: not compiled, no kernel from a hub, no CUDA graph ({rows} modules).",
}
_DROPPED: Final = (
    "auto_map",
    "transformers_weights",
    "compression_config",
    "adapter_config",
    "base_model_name_or_path",
)
"""Entries of config.json by which transformers would load something else than what was checked."""


@dataclass
class _Capture:
    """What one block's hooks took in one forward pass."""

    calls: int = 0
    input_Td: Tensor | None = None
    output: tuple[Tensor, ...] = ()
    used: tuple[Tensor, Tensor] | None = None


class ForeignModel(OpenModel):
    """A transformers model of a family in the table."""

    def __init__(self, module: nn.Module, row: Architecture, card: Card, tokenizer: Tokenizer | None) -> None:
        super().__init__(card, module, tokenizer, SelfCheck(TITLES))
        self._row = row
        config: Any = module.config
        flag = row.renormalise
        self._renormalise = flag if isinstance(flag, bool) else bool(getattr(config, flag))

    def records(self, batch: Batch) -> list[LayerRecord]:
        self.require_readable(batch)
        batch = batch.to(self.device)
        captures: dict[int, _Capture] = {meta.layer: _Capture() for meta in self.layers}
        padded = not bool(batch.valid.all())
        with self._evaluating(), self._hooked(captures):
            self._backbone()(
                input_ids=batch.inputs,
                attention_mask=batch.valid.long() if padded else None,
                position_ids=batch.position,
                use_cache=False,
            )
            records = [record for meta in self.layers if (record := self._record(meta.layer, captures, batch))]
            check_common(self._check, records, {meta.layer: meta.k for meta in self.layers}, int(batch.valid.sum()))
            self._check_path()
        return records

    def _backbone(self) -> nn.Module:
        """The model below its head, whose logits over the vocabulary nobody needs here."""
        base: nn.Module = getattr(self.module, str(getattr(self.module, "base_model_prefix", "")), self.module)
        return base

    @contextmanager
    def _hooked(self, captures: Mapping[int, _Capture]) -> Iterator[None]:
        def router(capture: _Capture, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            capture.calls += 1
            capture.input_Td, capture.output = args[0], output

        def experts(capture: _Capture, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            rest = [*args[1:], *kwargs.values()]
            capture.used = (rest[0], rest[1]) if len(rest) == 2 else None

        handles = []
        try:
            for layer, capture in captures.items():
                gate = self.module.get_submodule(self._row.router_module.format(layer=layer))
                bank = self.module.get_submodule(self._row.experts_module.format(layer=layer))
                handles.append(gate.register_forward_hook(partial(router, capture)))
                handles.append(bank.register_forward_pre_hook(partial(experts, capture), with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _record(self, layer: int, captures: Mapping[int, _Capture], batch: Batch) -> LayerRecord | None:
        """What the block did, after checking it. None where it was not captured once; the check `layers` says so."""
        capture, where = captures[layer], f"in block {layer}"
        if capture.calls != 1 or capture.input_Td is None:
            return None
        rows, (num_experts, k) = batch.valid.numel(), self._sizes(layer)
        told = _triple(capture.output, rows, num_experts, k)
        if told is None:
            got = ", ".join(f"{tuple(t.shape)} {t.dtype}" for t in capture.output if isinstance(t, Tensor))
            raise InputError(
                f"{self.card.name}: the router of block {layer} returned {got or 'no tensors'}, which is not the "
                f"{self._row.contract} contract that the table states for {self._row.title}."
            )
        logits_TE, told_gate_Tk, told_index_Tk = told
        index_Tk, gate_Tk = capture.used or (torch.full_like(told_index_Tk, -1), torch.full_like(told_gate_Tk, -1))
        wrong = max(differing_rows(index_Tk, told_index_Tk), differing_rows(gate_Tk, told_gate_Tk))
        self._check.note("executed", rows=rows, faults=wrong, where=where)
        if wrong and (index_Tk.shape != told_index_Tk.shape or int(index_Tk.min()) < 0):
            index_Tk, gate_Tk = told_index_Tk, told_gate_Tk
        input_Td = capture.input_Td.reshape(rows, -1)
        return self._verified(layer, input_Td, logits_TE, index_Tk, gate_Tk, batch.valid.flatten())

    def _verified(
        self, layer: int, input_Td: Tensor, logits_TE: Tensor, index_Tk: Tensor, gate_Tk: Tensor, valid_T: Tensor
    ) -> LayerRecord:
        rows, where = logits_TE.shape[0], f"in block {layer}"
        weight: Any = self.module.get_submodule(self._row.router_module.format(layer=layer)).weight
        again_TE = F.linear(input_Td, weight)
        self._check.note("logits", rows=rows, faults=differing_rows(again_TE, logits_TE), where=where)
        gates_in = torch.float32 if self._row.gates_in == "float32" else logits_TE.dtype
        decision = RULES[self._row.rule](again_TE, index_Tk.shape[1], self._renormalise, gates_in)
        self._check.note("selection", rows=rows, faults=differing_rows(decision.index_Tk, index_Tk), where=where)
        self._check.note("gates", rows=rows, faults=differing_rows(decision.gate_Tk, gate_Tk), where=where)
        wanted_TK = valid_T[:, None].expand_as(index_Tk)
        routing = Routing(
            logits_TE=logits_TE.float(),
            probs_TE=decision.probs_TE,
            scores_TE=decision.scores_TE,
            expert_TK=index_Tk,
            gate_TK=gate_Tk.float().where(wanted_TK, 0.0),
            wanted_TK=wanted_TK,
            sent_TK=wanted_TK,
            valid_T=valid_T,
        )
        alive_E = torch.ones(logits_TE.shape[1], dtype=torch.bool, device=logits_TE.device)
        return LayerRecord(layer=layer, routing=routing, alive_E=alive_E, input_Td=input_Td)

    def _sizes(self, layer: int) -> tuple[int, int]:
        meta = next(meta for meta in self.layers if meta.layer == layer)
        return meta.num_experts, meta.k or 0

    def _check_path(self) -> None:
        odd = [
            name
            for name, module in self.module.named_modules()
            if module._compiled_call_impl is not None or hasattr(module, "_orig_mod")
        ]
        hub = bool(getattr(self.module, "use_kernels", False))
        where = f"module {odd[0]!r} is compiled" if odd else "kernels from a hub are switched on"
        self._check.note("path", rows=sum(1 for _ in self.module.modules()), faults=len(odd) + hub, where=where)


def _triple(output: Any, rows: int, num_experts: int, k: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """(logits [T, E], gates [T, k], indices [T, k]) if the router's output is that, by shape and dtype."""
    if not isinstance(output, tuple) or len(output) != 3 or not all(isinstance(part, Tensor) for part in output):
        return None
    logits, gates, indices = output
    shapes = [tuple(part.shape) for part in output]
    if shapes != [(rows, num_experts), (rows, k), (rows, k)]:
        return None
    floats = logits.is_floating_point() and gates.is_floating_point() and not indices.is_floating_point()
    return (logits, gates, indices) if floats else None


def open_foreign(folder: Path, dtype: torch.dtype | None, device: str | torch.device) -> ForeignModel:
    """Open a checked folder with transformers; `dtype` None keeps the stored one. Raises `InputError`."""
    card = inspect_checkpoint(folder)
    weights = find_weights(folder)
    check_finite(weights)
    config = read_config(folder)
    row = architecture_of(config)
    module = _load(card, config, weights, dtype)
    _agree(row, card, module, weights)
    tokenizer = None
    if card.tokenizer == "tokenizer.json":
        tokenizer = load_tokenizer(folder)
    elif card.tokenizer == "bytes":
        tokenizer = byte_tokenizer()
    return ForeignModel(module.to(device).eval(), row, card, tokenizer)


def _load(card: Card, plain: Mapping[str, Any], weights: Weights, dtype: torch.dtype | None) -> nn.Module:
    """The model with exactly the tensors that were checked: transformers is handed them and opens no file itself."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
    from transformers.utils import logging

    clean = {key: value for key, value in plain.items() if not key.startswith("_") and key not in _DROPPED}
    tensors: dict[str, Tensor] = {}
    for path in weights.files:
        with safe_open(path, framework="pt") as file:
            tensors.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        config = AutoConfig.for_model(**clean)
        kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        _require_size(card, kind, config, weights)
        module, info = kind.from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            dtype=dtype or _stored_dtype(weights),
            attn_implementation="sdpa",
            output_loading_info=True,
        )
    except InputError:
        raise
    except Exception as error:  # transformers and huggingface_hub raise many kinds for a config that does not fit
        raise InputError(f"{card.name}: transformers cannot build the model: {shown(error, quote=False)}.") from None
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if info.get(what):
            first = shown(sorted(map(str, info[what]))[0])
            raise InputError(f"{card.name}: the weights do not fit config.json: {what.replace('_', ' ')} {first}.")
    loaded: nn.Module = module
    return loaded


def _require_size(card: Card, kind: Any, config: Any, weights: Weights) -> None:
    """Refuse a config.json that describes a larger model than the weights hold before any memory is taken for it."""
    with torch.device("meta"):
        described = sum(weight.numel() for weight in kind(config).parameters())
    if described > weights.params + card.vocab_size * card.d_model:  # a tied head is stored once
        fault = f"config.json describes {described:,} parameters, the weights hold {weights.params:,}"
        raise InputError(f"{card.name}: {fault}.")


def _stored_dtype(weights: Weights) -> torch.dtype:
    known = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float32}
    if weights.dtype not in known:
        raise InputError(f"weights of dtype {weights.dtype} cannot be run here; {', '.join(known)} can.")
    return known[weights.dtype]


def _agree(row: Architecture, card: Card, module: nn.Module, weights: Weights) -> None:
    """The routers in memory are those on disk, by block. Raises `InputError`: the installed transformers differs."""
    pattern = re.compile(re.escape(row.router_module).replace(r"\{layer\}", r"(?P<layer>\d+)"))
    paths = dict(module.named_modules())
    routed = {int(m["layer"]) for name in paths if (m := pattern.fullmatch(name)) and hasattr(paths[name], "weight")}
    there = {layer for layer in routed if row.experts_module.format(layer=layer) in paths}
    on_disk = set(moe_layers_on_disk(row, weights.entries))
    if there != on_disk:
        fault = f"the weights hold routers for blocks {sorted(on_disk)}, the model built from them has {sorted(there)}"
        raise InputError(f"{card.name}: {fault}.")
