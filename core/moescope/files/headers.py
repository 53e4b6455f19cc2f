"""The header of a safetensors file, checked before anything is mapped."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from moescope.errors import InputError
from moescope.files.json_files import MIB, parse_json, shown

MAX_HEADER: Final = 32 * MIB
"""Bytes of a header: 31,000 tensors need 4 MiB; the format itself stops at 100 MB."""
MAX_DIMS: Final = 8

DTYPE_BITS: Final[Mapping[str, int]] = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a safetensors file. `start` and `end` are byte offsets in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return _product(self.shape)


@dataclass(frozen=True)
class Header:
    """What a safetensors file says it holds, after that was found to be true of its layout."""

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]


def read_header(path: str | Path, *, limit: int = MAX_HEADER) -> Header:
    """Read and check the header of a safetensors file; no tensor is read and nothing is mapped.

    Beyond what the safetensors library checks (length, offsets, overlap, shape product) this refuses duplicate names
    and more than `MAX_DIMS` dimensions, and a header above `limit` bytes before reading it. Raises `InputError`.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path.name}: there is no such file.")
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(16)
        length = struct.unpack("<Q", head[:8])[0] if len(head) >= 8 else 0
        _refuse_other_formats(path.name, head, length)
        if length > limit:
            raise InputError(f"{path.name}: its header claims {length:,} bytes, more than the {limit:,} allowed.")
        if 8 + length > size:
            needed = f"its header needs {8 + length:,} bytes and the file has {size:,}"
            raise InputError(f"{path.name} is truncated: {needed}.")
        raw = file.read(length - (len(head) - 8)) if length > len(head) - 8 else b""
        content = (head[8:] + raw)[:length]
    plain = parse_json(content, f"the header of {path.name}")
    if not isinstance(plain, dict):
        raise InputError(f"the header of {path.name} is not a JSON object.")
    metadata = plain.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InputError(f"{path.name}: the header's metadata is not a table of texts.")
    entries = [_entry(path.name, name, item, 8 + length) for name, item in plain.items()]
    _check_layout(path.name, entries, 8 + length, size)
    return Header(tensors={entry.name: entry for entry in entries}, metadata=metadata)


def _refuse_other_formats(name: str, head: bytes, length: int) -> None:
    if length >= 2 and head[8:9] == b"{":
        return
    if head.startswith(b"PK\x03\x04"):
        raise InputError(f"{name} is a zip archive or a PyTorch pickle, not safetensors; pickles are never opened.")
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise InputError(f"{name} is a Python pickle, not safetensors; pickles can run code and are never opened.")
    for magic, what in ((b"GGUF", "a GGUF file"), (b"\x1f\x8b", "a gzip file"), (b"\x89HDF", "an HDF5 file")):
        if head.startswith(magic):
            raise InputError(f"{name} is {what}, not safetensors.")
    what = f"{name} is not a safetensors file"
    if len(head) < 8:
        raise InputError(f"{what}: it has {len(head)} bytes and the header's length alone takes 8.")
    if length < 2:
        raise InputError(f"{what}: its header claims {length} bytes.")
    if len(head) > 8 and length <= MAX_HEADER:
        raise InputError(f"{what}: its header does not start with a brace.")


def _entry(file: str, name: str, item: Any, base: int) -> TensorEntry:
    def refuse(why: str) -> NoReturn:
        raise InputError(f"{file}: tensor {shown(name)} {why}.")

    if not isinstance(item, dict) or set(item) != {"dtype", "shape", "data_offsets"}:
        refuse("does not state exactly dtype, shape and data_offsets")
    dtype, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        refuse(f"has the unknown dtype {shown(dtype)}")
    if not isinstance(shape, list) or not all(_is_count(n) for n in shape):
        refuse("has a shape that is not a list of non-negative integers")
    if len(shape) > MAX_DIMS:
        refuse(f"has {len(shape)} dimensions, more than {MAX_DIMS}")
    pair = isinstance(offsets, list) and len(offsets) == 2 and all(_is_count(n) for n in offsets)
    if not pair or offsets[0] > offsets[1]:
        refuse("has data offsets that are not two ascending non-negative integers")
    bits, span = _product(tuple(shape)) * DTYPE_BITS[dtype], offsets[1] - offsets[0]
    if bits != 8 * span:
        refuse(f"of shape {shape} and dtype {dtype} needs {-(-bits // 8):,} bytes but its offsets span {span:,}")
    return TensorEntry(name, dtype, tuple(shape), base + offsets[0], base + offsets[1])


def _check_layout(file: str, entries: list[TensorEntry], base: int, size: int) -> None:
    at = base
    for entry in sorted(entries, key=lambda item: (item.start, item.end)):
        if entry.start < at:
            raise InputError(f"{file}: the data of tensor {shown(entry.name)} overlap those of another.")
        if entry.start > at:
            raise InputError(
                f"{file}: {entry.start - at:,} bytes before tensor {shown(entry.name)} belong to no tensor."
            )
        at = entry.end
    if at > size:
        placed = f"its header places {at - base:,} bytes of data and the file has {size - base:,}"
        raise InputError(f"{file} is truncated: {placed}.")
    if at < size:
        raise InputError(f"{file}: {size - at:,} bytes stand behind the last tensor.")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total
