"""Whether a file is the trace it says it is: tensors against the schema's table, values against each other."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any, Final

import numpy as np
from pydantic import TypeAdapter, ValidationError

from moescope.data.base import Scope
from moescope.errors import InputError
from moescope.files import Header, shown
from moescope.trace.schema import SCHEMA_VERSION, TENSORS, LayerMeta, LayerTrace, TensorSpec, Trace, TraceMeta

METADATA: Final = "moescope_trace"
_GLOBAL: Final = ("T", "n", "D")


@dataclass(frozen=True, kw_only=True)
class LabelMeta:
    """What a file says of one label; its codes are a tensor."""

    names: tuple[str, ...]
    scope: Scope


@dataclass(frozen=True, kw_only=True)
class FileMeta(TraceMeta):
    """The metadata of a trace file: `TraceMeta`, and the labels."""

    labels: Mapping[str, LabelMeta] = field(default_factory=dict)


@cache
def _adapter() -> TypeAdapter[FileMeta]:
    return TypeAdapter(FileMeta)


def parse_meta(name: str, header: Header) -> FileMeta:
    """The metadata of the trace file `name`. Raises `InputError`."""
    stored = header.metadata.get(METADATA)
    if stored is None:
        raise InputError(f"{name} is a safetensors file but not a moescope trace (its metadata lack `{METADATA}`).")
    version = re.search(r'"version":\s*(-?\d{1,9})\b', stored)
    try:
        meta = _adapter().validate_json(stored)
    except ValidationError as error:
        if version and int(version[1]) != SCHEMA_VERSION:
            raise InputError(_other_version(name, int(version[1]))) from None
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "JSON"
        raise InputError(f"{name}: the trace's metadata are wrong: {shown(where)}: {first['msg']}.") from None
    if meta.version != SCHEMA_VERSION:
        raise InputError(_other_version(name, meta.version))
    blocks = [layer.layer for layer in meta.layers]
    if not blocks or sorted(set(blocks)) != blocks or blocks[0] < 0:
        raise InputError(f"{name}: its layers are not ascending numbers of blocks.")
    for layer in meta.layers:
        if not 1 <= layer.num_experts <= 32_767:
            raise InputError(f"{name}: layer {layer.layer} states {layer.num_experts} experts.")
        if layer.k is not None and not 1 <= layer.k <= layer.num_experts:
            raise InputError(f"{name}: layer {layer.layer} states k = {layer.k} of {layer.num_experts} experts.")
        if layer.alive is not None and not _are_ids(layer.alive, layer.num_experts):
            raise InputError(f"{name}: layer {layer.layer} does not name its {layer.num_experts} alive experts.")
    return meta


def _are_ids(alive: tuple[int, ...], num_experts: int) -> bool:
    rising = all(low < high for low, high in pairwise(alive))
    return len(alive) == num_experts and rising and alive[0] >= 0 and alive[-1] < 32_767


def _other_version(name: str, version: int) -> str:
    return f"{name} is a trace of version {version}; this release reads version {SCHEMA_VERSION}."


def check_header(name: str, header: Header, meta: FileMeta) -> None:
    """Every tensor is in the table with its dtype and shape, and none is missing. Raises `InputError`."""
    sizes: dict[str, int] = {f"{layer.layer}.E": layer.width for layer in meta.layers}
    due = _due(meta)
    for tensor, entry in header.tensors.items():
        spec = due.get(tensor)
        if spec is None:
            raise InputError(f"{name}: tensor {shown(tensor)} does not belong to a trace of this kind.")
        if entry.dtype not in spec.dtypes:
            raise InputError(f"{name}: tensor {shown(tensor)} is {entry.dtype}, expected {' or '.join(spec.dtypes)}.")
        symbols = spec.shape.strip("[]").split(", ")
        if len(symbols) != len(entry.shape):
            raise InputError(f"{name}: tensor {shown(tensor)} has shape {list(entry.shape)}, expected {spec.shape}.")
        scope = tensor.split(".")[1] if tensor.startswith("layer.") else tensor
        for symbol, size in zip(symbols, entry.shape, strict=True):
            key = symbol if symbol in _GLOBAL else f"{scope}.{symbol}"
            if sizes.setdefault(key, size) != size:
                fault = f"has {symbol} = {size:,} where others have {sizes[key]:,}"
                raise InputError(f"{name}: tensor {shown(tensor)} {fault}.")
    for tensor, spec in due.items():
        if not spec.optional and tensor not in header.tensors:
            raise InputError(f"{name} lacks tensor {shown(tensor)}.")
    _check_groups(name, header, meta, sizes)


def _due(meta: FileMeta) -> dict[str, TensorSpec]:
    made: dict[str, TensorSpec] = {}
    for spec in TENSORS:
        if "{layer}" in spec.name:
            made.update({spec.name.format(layer=layer.layer): spec for layer in meta.layers})
        elif "{label}" in spec.name:
            made.update({spec.name.format(label=label): spec for label in meta.labels})
        else:
            made[spec.name] = spec
    return made


def _check_groups(name: str, header: Header, meta: FileMeta, sizes: Mapping[str, int]) -> None:
    there = header.tensors
    for label in meta.labels:
        if f"label.{label}" not in there:
            raise InputError(f"{name} names the label {shown(label)} and lacks its tensor.")
    text = [tensor for tensor in ("token.start", "token.end", "text.bytes") if tensor in there]
    if len(text) not in (0, 3) and sizes.get("T"):
        raise InputError(f"{name} holds {shown(text[0])}, but token.start, token.end and text.bytes come together.")
    for layer in meta.layers:
        if f"layer.{layer.layer}.hidden" in there and "sample.tokens" not in there:
            raise InputError(f"{name} holds hidden vectors of layer {layer.layer} but not which tokens they are of.")
        slots = sizes.get(f"{layer.layer}.K", 0)
        if not 1 <= slots <= layer.num_experts:
            raise InputError(f"{name}: layer {layer.layer} has {slots} slots for {layer.num_experts} experts.")
    if not sizes.get("T"):
        raise InputError(f"{name} holds no tokens.")


def check_values(name: str, trace: Trace) -> None:
    """Indices point at what is there. Layers are checked when they are read. Raises `InputError`."""

    def require(ok: Any, why: str) -> None:
        if not bool(ok):
            raise InputError(f"{name}: {why}.")

    total = trace.num_tokens
    named = trace.meta.data.get("documents")
    most = max(total, len(named) if isinstance(named, list) else 0)
    ascending = trace.doc[0] >= 0 and (np.diff(trace.doc) >= 0).all()
    require(ascending and trace.doc[-1] < most, "token.doc is not ascending numbers of documents")
    require((trace.position >= 0).all(), "token.position holds negative positions")
    if trace.start is not None and trace.end is not None:
        inside = (trace.start >= 0) & (trace.start <= trace.end) & (trace.end <= len(trace.text))
        require(inside.all(), "tokens point outside text.bytes")
        require((np.diff(trace.start) >= 0).all(), "token.start does not ascend")
    if trace.images is not None:
        require(trace.images.shape[0] > int(trace.doc[-1]), "a document has no image")
    if trace.sample is not None and len(trace.sample):
        rising = (np.diff(trace.sample) > 0).all() and trace.sample[0] >= 0 and trace.sample[-1] < total
        require(rising, "sample.tokens are not ascending token numbers")
    for label, codes in trace.labels.items():
        fits = (codes.codes >= -1) & (codes.codes < len(codes.names))
        require(fits.all(), f"label {shown(label)} has codes outside its {len(codes.names)} names")


def check_layer(name: str, layer: LayerTrace) -> None:
    """A layer's experts exist, its gates are numbers and 0 where nothing was sent. Raises `InputError`."""
    meta: LayerMeta = layer.meta

    def require(ok: Any, why: str) -> None:
        if not bool(ok):
            raise InputError(f"{name}: layer {meta.layer} {why}.")

    expert = layer.expert_TK
    require((expert >= -1).all() and (expert < meta.width).all(), f"names experts beyond its {meta.num_experts}")
    if meta.alive is not None:
        require(np.isin(expert, (-1, *meta.alive)).all(), "sends tokens to experts that are dead")
    require(not (layer.sent_TK & ~layer.wanted_TK).any(), "sends tokens to experts that they did not choose")
    require(np.isfinite(layer.gate_TK).all(), "has gates that are not finite")
    require(not ((layer.gate_TK != 0) & ~layer.sent_TK).any(), "weighs assignments that were not sent")
    require((layer.entropy_T >= 0).all() and np.isfinite(layer.entropy_T).all(), "has an entropy below 0 or not finite")
    require(np.isfinite(layer.mean_probs_E).all(), "has mean probabilities that are not finite")
    if layer.hidden_nd is not None:
        require(np.isfinite(layer.hidden_nd).all(), "has hidden vectors that are not finite")
