"""What a checkpoint is, from its configuration and its weights' headers alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from moescope.adapters.architectures import ARCHITECTURES, SPARSE, Architecture, count
from moescope.adapters.card import Card, TokenizerKind
from moescope.adapters.weights import SINGLE, Weights, check_finite, find_weights
from moescope.errors import InputError
from moescope.files import read_json, shown
from moescope.imports import import_models
from moescope.trace.schema import LayerMeta

CONFIG: Final = "config.json"
MAX_CONTEXT: Final = 2048
"""Positions that a foreign model is fed at once, at most: attention over more is slow where there is no GPU."""
_BYTES: Final = 256


def inspect_checkpoint(path: str | Path, *, weights: bool = False) -> Card:
    """What the checkpoint at `path` is. Only config.json and headers are read, and neither torch nor transformers run.

    path:    a folder, a folder around one, or the `model.safetensors` in one.
    weights: also read every tensor once and refuse NaN and infinity; for uploads.
    Raises `InputError` for what cannot be opened.
    """
    folder = locate(path)
    config = read_config(folder)
    if "moescope_checkpoint" in config:
        import_models()
        from moescope.adapters.ours import inspect_ours

        card, found = inspect_ours(folder)
    else:
        found = find_weights(folder)
        card = _foreign_card(folder, config, found)
    if weights:
        check_finite(found)
    return card


def locate(path: str | Path) -> Path:
    """The folder with config.json that `path` means. Raises `InputError`."""
    path = Path(path)
    if path.is_file():
        if path.name == SINGLE and (path.parent / CONFIG).is_file():
            return path.parent
        if path.suffix == ".safetensors":
            why = "a checkpoint also needs its config.json, so give its folder"
            raise InputError(f"{path.name} holds weights only; {why}.")
        raise InputError(f"{path.name} is a file, and a checkpoint is a folder with a config.json.")
    if not path.is_dir():
        raise InputError(f"{path}: there is no such folder.")
    if (path / CONFIG).is_file():
        return path
    inner = [child for child in sorted(path.iterdir()) if child.is_dir() and (child / CONFIG).is_file()]
    if len(inner) == 1:
        return inner[0]
    many = f"; {len(inner)} folders in it have one" if inner else ""
    raise InputError(f"{path.name} has no config.json, so it is not a checkpoint that can be opened{many}.")


def read_config(folder: Path) -> dict[str, Any]:
    """config.json as plain values. Raises `InputError`."""
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict):
        raise InputError(f"{folder.name}: config.json is not a table.")
    return config


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """The row for a foreign configuration. Raises `InputError` that lists what is known."""
    name = config.get("model_type")
    row = ARCHITECTURES.get(name) if isinstance(name, str) else None
    if row is None:
        fault = "lacks `model_type`" if name is None else f"is of model_type {shown(name)}, which is not in the table"
        raise InputError(f"config.json {fault}; known are {', '.join(ARCHITECTURES)} and moescope's own checkpoints.")
    if config.get("quantization_config") is not None:
        raise InputError("config.json has a `quantization_config`; quantised checkpoints are not read yet.")
    return row


def renormalised(row: Architecture, config: Mapping[str, Any]) -> bool:
    """Whether the chosen gates of this checkpoint are made to sum to 1; a flag that is not there is off."""
    return row.renormalise if isinstance(row.renormalise, bool) else config.get(row.renormalise) is True


def text_tokenizer(folder: Path, vocab_size: int) -> tuple[TokenizerKind, list[str]]:
    """How text becomes tokens (as in `Card.tokenizer`), and what a reader should know about it."""
    if (folder / "tokenizer.json").is_file():
        return "tokenizer.json", []
    other = next((name for name in ("tokenizer.model", "vocab.json", "vocab.txt") if (folder / name).is_file()), None)
    if other is not None:
        return "none", [f"{other} is not read: save the tokenizer as tokenizer.json to trace text."]
    if vocab_size < 2:
        return "none", [f"no tokenizer.json in the folder, and {vocab_size} token id: text cannot be traced."]
    if vocab_size < _BYTES:
        fed = f"text is fed as bytes, the {vocab_size - 1} usual ones each as an id and all others as the last id"
        return "bytes", [f"no tokenizer.json in the folder, and only {vocab_size} token ids: {fed}."]
    return "bytes", ["no tokenizer.json in the folder: text is fed as its UTF-8 bytes, ids 0 to 255."]


def _foreign_card(folder: Path, config: dict[str, Any], weights: Weights) -> Card:
    row = architecture_of(config)
    num_experts = count(config, row.experts_keys, "number of experts")
    k = count(config, row.k_keys, "number of experts per token")
    if k > num_experts:
        raise InputError(f"config.json: {k} experts per token are more than the {num_experts} experts.")
    num_layers = count(config, (row.layers_key,), "number of blocks")
    d_model = count(config, (row.hidden_key,), "width")
    vocab_size = count(config, (row.vocab_key,), "size of the vocabulary")
    sparse = _checked_blocks(folder, row, config, weights, num_layers, num_experts, d_model)
    _check_shape(weights, row.embedding_disk, (vocab_size, d_model))
    tokenizer, problems = text_tokenizer(folder, vocab_size)
    rule = row.rule + (", renormalised" if renormalised(row, config) else "")
    return Card(
        name=folder.name,
        format="transformers",
        family=row.model_type,
        kind="text",
        params=weights.params,
        dtype=weights.dtype,
        d_model=d_model,
        num_layers=num_layers,
        layers=tuple(
            LayerMeta(layer=at, path=row.router_module.format(layer=at), router=rule, num_experts=num_experts, k=k)
            for at in sparse
        ),
        max_seq=min(count(config, (row.context_key,), "longest sequence"), MAX_CONTEXT),
        vocab_size=vocab_size,
        tokenizer=tokenizer,
        size_bytes=weights.size_bytes,
        problems=tuple(problems),
    )


def _checked_blocks(
    folder: Path,
    row: Architecture,
    config: dict[str, Any],
    weights: Weights,
    num_layers: int,
    num_experts: int,
    d_model: int,
) -> list[int]:
    """The blocks with experts, after the weights' names and shapes were found to be what config.json says."""
    _check_blocks(folder, row, weights, num_layers)
    sparse = sorted(SPARSE[row.sparse](config, num_layers))
    if not sparse:
        raise InputError("config.json leaves no block with experts.")
    width = count(config, (row.expert_width_key,), "width of an expert")
    _check_routers(row, weights, sparse, (num_experts, d_model))
    _check_experts(row, weights, sparse, {"E": num_experts, "I": width, "2I": 2 * width, "d": d_model})
    return sparse


def moe_layers_on_disk(row: Architecture, names: Mapping[str, Any]) -> dict[int, str]:
    """Blocks that have a router among the weights' names, each with its router's name."""
    pattern = re.compile(row.router_disk)
    return {int(match["layer"]): name for name in names if (match := pattern.fullmatch(name))}


def _check_blocks(folder: Path, row: Architecture, weights: Weights, num_layers: int) -> None:
    pattern = re.compile(row.block_disk)
    there = {int(match["layer"]) for name in weights.entries if (match := pattern.match(name))}
    if there != set(range(min(num_layers, len(there) + 1))) or len(there) != num_layers:
        raise InputError(f"{folder.name}: config.json says {num_layers} blocks, the weights hold {len(there)}.")


def _check_shape(weights: Weights, name: str, shape: tuple[int, ...]) -> None:
    entry = weights.entries.get(name)
    if entry is None:
        raise InputError(f"the weights lack tensor {shown(name)}.")
    if entry.shape != shape:
        raise InputError(f"tensor {shown(name)} has shape {list(entry.shape)}, but config.json says {list(shape)}.")


def _check_routers(row: Architecture, weights: Weights, sparse: list[int], shape: tuple[int, int]) -> None:
    routers = moe_layers_on_disk(row, weights.entries)
    if sorted(routers) != sparse:
        there, said = _listed(sorted(routers)), _listed(sparse)
        raise InputError(f"config.json says that blocks {said} have experts, the weights hold routers for {there}.")
    for name in routers.values():
        _check_shape(weights, name, shape)


def _check_experts(row: Architecture, weights: Weights, sparse: list[int], sizes: Mapping[str, int]) -> None:
    pattern = re.compile(row.expert_disk)
    there: dict[int, dict[str, set[int]]] = {layer: {} for layer in sparse}
    for name in weights.entries:
        match = pattern.fullmatch(name)
        if match is None:
            continue
        layer, part, expert = int(match["layer"]), match["part"], match["expert"]
        if part not in row.expert_shapes or layer not in there:
            raise InputError(f"tensor {shown(name)} does not belong to a {row.title} of this configuration.")
        symbols = row.expert_shapes[part]
        if expert is None and symbols[0] != "E":
            symbols = ("E", *symbols)
        _check_shape(weights, name, tuple(sizes[symbol] for symbol in symbols))
        there[layer].setdefault(part, set()).update(range(sizes["E"]) if expert is None else {int(expert)})
    for layer, parts in there.items():
        for part, experts in parts.items():
            if experts != set(range(sizes["E"])):
                fault = f"config.json says {sizes['E']} experts, the weights of block {layer} hold {len(experts)}"
                raise InputError(f"{fault} ({part}).")
        if not parts:
            raise InputError(f"the weights hold no experts for block {layer}.")


def _listed(layers: list[int]) -> str:
    return shown(", ".join(map(str, layers)) or "none", quote=False)
