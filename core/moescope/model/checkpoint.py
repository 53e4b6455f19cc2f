"""Checkpoints on disk: a folder with config.json, model.safetensors and, for text, tokenizer.json. Never a pickle."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from moescope.config import dump, parse
from moescope.errors import InputError
from moescope.files import read_header, read_json, shown, usual_mode
from moescope.model.config import ModelConfig
from moescope.model.transformer import Transformer

CHECKPOINT_VERSION: Final = 1
CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
_MAX_TOKENIZER: Final = 64 << 20
_FLOATS: Final = ("F32", "BF16", "F16", "F64")
_EXACT: Final = {torch.bool: "BOOL", torch.int64: "I64"}


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
    staging = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.partial")
    staging.mkdir(parents=True)
    try:
        (staging / CONFIG).write_text(text + "\n", encoding="utf-8")
        save_file(_stored(model, dtype), staging / WEIGHTS, metadata={"format": "pt"})
        usual_mode(staging / WEIGHTS)
        if tokenizer_json is not None:
            (staging / TOKENIZER).write_text(tokenizer_json, encoding="utf-8")
        if extra is not None:
            extra(staging)
        for path in [*staging.rglob("*"), staging]:
            _sync(path)
        _put(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _put(staging: Path, target: Path) -> None:
    """Rename `staging` to `target`; a folder that stands there is moved aside first, and back if the rename fails."""
    old = staging.with_suffix(".old")
    if target.exists():
        target.rename(old)
    try:
        staging.rename(target)
    except BaseException:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
    _sync(target.parent)


def _exact(name: str) -> bool:
    """Whether a tensor is float32 whatever the model's dtype: what routers decide by."""
    return ".router." in name or name.endswith(".shift_E")


def _stored(model: Transformer, dtype: torch.dtype | None) -> dict[str, Tensor]:
    tensors = {}
    for name, tensor in model.state_dict().items():
        cast = dtype is not None and tensor.is_floating_point() and not _exact(name)
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
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder.name} is not a moescope checkpoint: it has no {CONFIG}.")
    plain = read_json(folder / CONFIG)
    version = plain.get("moescope_checkpoint") if isinstance(plain, dict) else None
    if version is None:
        raise InputError(f"{folder.name} is not a moescope checkpoint: {CONFIG} lacks `moescope_checkpoint`.")
    if version != CHECKPOINT_VERSION:
        read = f"this release reads {CHECKPOINT_VERSION}"
        raise InputError(f"{folder.name} is a checkpoint of version {shown(version)}; {read}.")
    model, card = plain.get("model"), plain.get("card", {})
    if not isinstance(model, dict) or not isinstance(card, dict):
        raise InputError(f"{folder.name}: `model` and `card` in {CONFIG} must be tables.")
    return parse(ModelConfig, model), card


def load_checkpoint(
    folder: str | Path, dtype: torch.dtype | None = torch.float32
) -> tuple[Transformer, str | None, dict[str, Any]]:
    """The model (in evaluation mode, weights as `dtype`; None: as stored), tokenizer.json's text, and the card.

    Names, shapes and dtypes are compared with the configuration before a weight is read or memory is taken. Raises
    `InputError` for a folder that is not a checkpoint, tensors that do not fit, and weights that are not finite.
    """
    folder = Path(folder)
    config, card = read_config(folder)
    tokenizer_json = _read_tokenizer(folder / TOKENIZER)
    with torch.device("meta"):
        model = Transformer(config, seed=None)
    wanted = model.state_dict()
    _check_header(folder / WEIGHTS, wanted)
    model.load_state_dict(_read_tensors(folder / WEIGHTS, wanted, dtype), assign=True)
    for index, layer in model.moe.items():
        if not bool(layer.alive_E.any()):
            raise InputError(f"{folder.name}: every expert of block {index} is dead.")
    return model.eval(), tokenizer_json, card


def _read_tokenizer(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        content = file.read(_MAX_TOKENIZER + 1)
    if len(content) > _MAX_TOKENIZER:
        raise InputError(f"{path.name} is larger than the {_MAX_TOKENIZER:,} bytes allowed for it.")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{path.name} is not UTF-8.") from None


def _check_header(path: Path, wanted: Mapping[str, Tensor]) -> None:
    present = read_header(path).tensors
    for name in sorted(set(present) ^ set(wanted)):
        fault = "is missing" if name in wanted else f"does not belong to the model that {CONFIG} describes"
        raise InputError(f"{path.name}: tensor {shown(name)} {fault}.")
    for name, expected in wanted.items():
        entry = present[name]
        if entry.shape != tuple(expected.shape):
            of = f"{CONFIG} makes it {list(expected.shape)}"
            raise InputError(f"{path.name}: tensor {name!r} has shape {list(entry.shape)}, {of}.")
        allowed = _FLOATS if expected.is_floating_point() else (_EXACT[expected.dtype],)
        if entry.dtype not in allowed:
            raise InputError(f"{path.name}: tensor {name!r} is {entry.dtype}, expected {' or '.join(allowed)}.")


def _read_tensors(path: Path, wanted: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    with safe_open(path, framework="pt") as file:
        read: Callable[[str], Tensor] = file.get_tensor
        for name, expected in wanted.items():
            tensor = read(name)
            if not bool(torch.isfinite(tensor).all()):
                raise InputError(f"{path.name}: tensor {name!r} holds values that are not finite.")
            floats = torch.float32 if _exact(name) else dtype or tensor.dtype
            tensors[name] = tensor.to(floats if expected.is_floating_point() else expected.dtype, copy=True)
    return tensors
