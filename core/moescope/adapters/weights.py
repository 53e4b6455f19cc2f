"""The weights of a checkpoint folder: which files hold which tensors, and whether every value is finite.

Headers are checked before anything is mapped; values are read as raw bytes with numpy, so neither needs torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np

from moescope.errors import InputError
from moescope.files import TensorEntry, read_header, read_json, safe_relative, shown

INDEX: Final = "model.safetensors.index.json"
SINGLE: Final = "model.safetensors"
_CHUNK: Final = 16 << 20
_PICKLES: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt")

_EXPONENT: Final[Mapping[str, tuple[str, int]]] = MappingProxyType(
    {
        "F64": ("<u8", 0x7FF0 << 48),
        "F32": ("<u4", 0x7F80 << 16),
        "F16": ("<u2", 0x7C00),
        "BF16": ("<u2", 0x7F80),
        "F8_E5M2": ("u1", 0x7C),
        "F8_E4M3": ("u1", 0x7F),  # no infinities: only the all-ones mantissa is NaN
    }
)
"""Floating dtype to (unsigned view, bits that are all set exactly where a value is infinite or NaN)."""


@dataclass(frozen=True)
class Weights:
    """Tensors of a checkpoint: name to its entry and its file. `files` in order, `size_bytes` on disk."""

    entries: Mapping[str, TensorEntry]
    file_of: Mapping[str, Path]
    files: tuple[Path, ...]

    @property
    def params(self) -> int:
        """Numbers stored in floating-point tensors."""
        return sum(entry.size for entry in self.entries.values() if entry.dtype in _EXPONENT)

    @property
    def size_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)

    @property
    def dtype(self) -> str:
        """The dtype of most parameters."""
        sizes: Counter[str] = Counter()
        for entry in self.entries.values():
            sizes[entry.dtype] += entry.size
        return sizes.most_common(1)[0][0] if sizes else "F32"


def find_weights(folder: Path) -> Weights:
    """Read the headers of every weights file that the folder names. Raises `InputError`."""
    expected: dict[str, str] | None = None
    if (folder / SINGLE).is_file() or not (folder / INDEX).is_file():
        names = [SINGLE]
        if not (folder / SINGLE).is_file():
            raise InputError(_no_weights(folder))
    else:
        expected = _read_index(folder)
        names = sorted(set(expected.values()))
    entries: dict[str, TensorEntry] = {}
    file_of: dict[str, Path] = {}
    for name in names:
        if not (folder / name).is_file():
            raise InputError(f"{folder.name}: the weights file {name}, which {INDEX} names, is missing.")
        for tensor, entry in read_header(folder / name).tensors.items():
            if tensor in entries:
                other = file_of[tensor].name
                raise InputError(f"{folder.name}: tensor {shown(tensor)} stands in two files, {other} and {name}.")
            entries[tensor], file_of[tensor] = entry, folder / name
    for tensor, name in (expected or {}).items():
        if tensor not in entries or file_of[tensor].name != name:
            raise InputError(f"{folder.name}: {name} lacks tensor {shown(tensor)}, which {INDEX} says it holds.")
    if not entries:
        raise InputError(f"{folder.name}: its weights file holds no tensor.")
    return Weights(entries, file_of, tuple(folder / name for name in names))


def _read_index(folder: Path) -> dict[str, str]:
    plain = read_json(folder / INDEX, limit=64 << 20)
    table = plain.get("weight_map") if isinstance(plain, dict) else None
    if not isinstance(table, dict) or not table or not all(isinstance(name, str) for name in table.values()):
        raise InputError(f"{folder.name}: {INDEX} has no table `weight_map` of tensor names to files.")
    for name in set(table.values()):
        if len(safe_relative(name).parts) != 1 or not name.endswith(".safetensors"):
            raise InputError(f"{folder.name}: {INDEX} names {shown(name)}, which is no safetensors file of it.")
    return dict(table)


def _no_weights(folder: Path) -> str:
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        why = "pickles can run code and are never opened: save the model as safetensors"
        return f"{folder.name} holds its weights only as pickles ({pickles[0]}); {why}."
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    found = f" (it has {shown(others[0], quote=False)}, which no index names)" if others else ""
    return f"{folder.name} has no {SINGLE} and no {INDEX}{found}."


def check_finite(weights: Weights) -> None:
    """Read every floating-point tensor once. Raises `InputError` naming the first that holds a NaN or an infinity."""
    for path in weights.files:
        with path.open("rb") as file:
            for name, entry in weights.entries.items():
                if weights.file_of[name] != path or entry.dtype not in _EXPONENT:
                    continue
                view, mask = _EXPONENT[entry.dtype]
                file.seek(entry.start)
                left = entry.end - entry.start
                while left:
                    raw = file.read(min(left, _CHUNK))
                    if not raw:
                        raise InputError(f"{path.name} became shorter while it was read.")
                    left -= len(raw)
                    bits = np.frombuffer(raw, np.dtype(view))
                    if bool(((bits & bits.dtype.type(mask)) == mask).any()):
                        raise InputError(f"{path.name}: tensor {shown(name)} holds values that are NaN or infinite.")
