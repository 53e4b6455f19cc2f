"""Opening a foreign checkpoint: transformers builds the model, from nothing but what was checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from torch import Tensor, nn

from moescope.adapters.architectures import Architecture
from moescope.adapters.card import Card
from moescope.adapters.foreign import ForeignModel
from moescope.adapters.inspection import architecture_of, inspect_checkpoint, moe_layers_on_disk, read_config
from moescope.adapters.tokenization import byte_tokenizer, load_tokenizer
from moescope.adapters.weights import Weights, check_finite, find_weights
from moescope.errors import InputError
from moescope.files import shown

_DROPPED: Final = (
    "auto_map",
    "transformers_weights",
    "compression_config",
    "adapter_config",
    "base_model_name_or_path",
)
"""Entries of config.json by which transformers would load something else than what was checked."""


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
        tokenizer = byte_tokenizer(card.vocab_size)
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
        dtype = dtype or _stored_dtype(weights)
        if not _grouped(card, plain, dtype):
            config._experts_implementation = "eager"
        module, info = kind.from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            dtype=dtype,
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


def _grouped(card: Card, plain: Mapping[str, Any], dtype: torch.dtype) -> bool:
    """Whether torch's grouped product, transformers' default, takes these experts: rows of whole 16 bytes."""
    widths = (card.d_model, plain[architecture_of(plain).expert_width_key])
    return all(width * dtype.itemsize % 16 == 0 for width in widths)


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
