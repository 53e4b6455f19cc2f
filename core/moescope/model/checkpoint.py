"""Checkpoints on disk: a folder with config.json, model.safetensors and, for text, tokenizer.json. Never a pickle."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from moescope.config import dump, parse
from moescope.errors import InputError
from moescope.model.config import ModelConfig
from moescope.model.transformer import Transformer

CHECKPOINT_VERSION: Final = 1
CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
_MAX_JSON: Final = 64 << 20


def save_checkpoint(
    folder: str | Path,
    model: Transformer,
    tokenizer_json: str | None,
    card: Mapping[str, Any],
    dtype: torch.dtype | None = None,
    extra: Callable[[Path], None] | None = None,
) -> None:
    """Write a checkpoint that appears complete or not at all; an older checkpoint of that name is replaced.

    card:  whatever should be known about it (JSON values). dtype: of the stored weights (routers stay float32);
    None keeps the model's. extra: called with the staging folder to add files, such as the optimizer's state.
    Raises `InputError` where something that is not a checkpoint stands in the way.
    """
    target = Path(folder).absolute()
    if target.exists() and not (target / CONFIG).is_file():
        raise InputError(f"{target.name} exists and is not a moescope checkpoint, so it is not overwritten.")
    plain = {"moescope_checkpoint": CHECKPOINT_VERSION, "model": dump(model.config), "card": dict(card)}
    text = json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False)
    staging = target.with_name(f".{target.name}.{os.getpid()}.partial")
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        staging.mkdir()
        (staging / CONFIG).write_text(text + "\n", encoding="utf-8")
        save_file(_stored(model, dtype), staging / WEIGHTS, metadata={"format": "pt"})
        if tokenizer_json is not None:
            (staging / TOKENIZER).write_text(tokenizer_json, encoding="utf-8")
        if extra is not None:
            extra(staging)
        for path in [*(item for item in staging.rglob("*") if item.is_file()), staging]:
            _sync(path)
        if target.exists():
            target.rename(old)
        staging.rename(target)
        _sync(target.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _stored(model: Transformer, dtype: torch.dtype | None) -> dict[str, Tensor]:
    tensors = {}
    for name, tensor in model.state_dict().items():
        cast = dtype is not None and tensor.is_floating_point() and ".router." not in name
        tensors[name] = tensor.detach().to("cpu", dtype if cast else tensor.dtype).contiguous()
    return tensors


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_config(folder: str | Path) -> tuple[ModelConfig, dict[str, Any]]:
    """The model's configuration and the card, without reading a weight. Raises `InputError`."""
    path = Path(folder) / CONFIG
    plain = _read_json(path)
    version = plain.get("moescope_checkpoint") if isinstance(plain, dict) else None
    if version is None:
        raise InputError(f"{path.parent.name} is not a moescope checkpoint: config.json lacks `moescope_checkpoint`.")
    if version != CHECKPOINT_VERSION:
        raise InputError(
            f"{path.parent.name} is a checkpoint of version {version!r}; this release reads {CHECKPOINT_VERSION}."
        )
    model, card = plain.get("model"), plain.get("card", {})
    if not isinstance(model, dict) or not isinstance(card, dict):
        raise InputError(f"{path.parent.name}: `model` and `card` in config.json must be tables.")
    return parse(ModelConfig, model), card


def _read_json(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"{path.parent.name} is not a moescope checkpoint: it has no {path.name}.")
    if path.stat().st_size > _MAX_JSON:
        raise InputError(f"{path.name} is larger than {_MAX_JSON} bytes.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path.parent.name}: config.json is not JSON: {error}.") from None


def load_checkpoint(
    folder: str | Path, dtype: torch.dtype | None = torch.float32
) -> tuple[Transformer, str | None, dict[str, Any]]:
    """The model (in evaluation mode, weights as `dtype`; None: as stored), tokenizer.json's text, and the card.

    Names and shapes are compared with the configuration before a weight is read. Raises `InputError` for a folder that
    is not a checkpoint, tensors that do not fit, and weights that are not finite.
    """
    folder = Path(folder)
    config, card = read_config(folder)
    with torch.device("meta"):
        model = Transformer(config, seed=None)
    model.load_state_dict(_read_tensors(folder / WEIGHTS, model.state_dict(), dtype), assign=True)
    for index, layer in model.moe.items():
        if not bool(layer.alive_E.any()):
            raise InputError(f"{folder.name}: every expert of block {index} is dead.")
    tokenizer = folder / TOKENIZER
    return model.eval(), tokenizer.read_text(encoding="utf-8") if tokenizer.is_file() else None, card


def _read_tensors(path: Path, wanted: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    name = f"{path.parent.name}/{path.name}"
    if not path.is_file():
        raise InputError(f"{path.parent.name} has no {path.name}.")
    try:
        file = safe_open(path, framework="pt")
    except Exception as error:
        raise InputError(f"{name} is not a safetensors file: {error}.") from None
    with file:
        present = set(file.keys())  # type: ignore[no-untyped-call]
        for key in sorted(present ^ set(wanted)):
            fault = "is missing" if key in wanted else "does not belong to the model that config.json describes"
            raise InputError(f"{name}: tensor {key!r} {fault}.")
        for key, expected in wanted.items():
            shape = tuple(file.get_slice(key).get_shape())  # type: ignore[no-untyped-call]
            if shape != tuple(expected.shape):
                raise InputError(f"{name}: tensor {key!r} has shape {shape}, config.json says {tuple(expected.shape)}.")
        read: Callable[[str], Tensor] = file.get_tensor
        return {key: _checked(name, key, read(key), expected, dtype) for key, expected in wanted.items()}


def _checked(file: str, name: str, tensor: Tensor, expected: Tensor, dtype: torch.dtype | None) -> Tensor:
    if tensor.is_floating_point() != expected.is_floating_point():
        raise InputError(f"{file}: tensor {name!r} is {tensor.dtype}, expected {expected.dtype}.")
    if not tensor.is_floating_point():
        return tensor.to(expected.dtype, copy=True)
    if not bool(torch.isfinite(tensor).all()):
        raise InputError(f"{file}: tensor {name!r} holds values that are not finite.")
    keep = torch.float32 if ".router." in name else dtype
    return tensor.to(keep or tensor.dtype, copy=True)
