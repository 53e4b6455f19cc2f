"""Reading and writing traces. Reading maps the file and loads a layer when it is asked for."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from moescope.data.base import Labels
from moescope.errors import InputError
from moescope.files import read_header, shown, usual_mode
from moescope.trace.checks import METADATA, check_header, check_layer, check_values, parse_meta
from moescope.trace.schema import LayerMeta, LayerTrace, Trace, TraceMeta

_EMPTY_U8 = 255


def write_trace(trace: Trace, path: str | Path) -> None:
    """Write `trace` as one safetensors file. The file appears complete or not at all.

    Raises `InputError` where it cannot be written.
    """
    tensors: dict[str, np.ndarray] = {
        "token.doc": trace.doc.astype(np.int32),
        "token.position": trace.position.astype(np.int32),
    }
    for name, value in (("token.id", trace.token_id), ("token.start", trace.start), ("token.end", trace.end)):
        if value is not None:
            tensors[name] = value.astype(np.int32)
    if trace.text:
        tensors["text.bytes"] = np.frombuffer(trace.text, np.uint8)
    if trace.images is not None:
        tensors["image.pixels"] = trace.images
    if trace.sample is not None:
        tensors["sample.tokens"] = trace.sample.astype(np.int32)
    for name, labels in trace.labels.items():
        tensors[f"label.{name}"] = labels.codes.astype(np.int16)
    for layer in trace.layer_ids:
        tensors.update(_layer_tensors(layer, trace.layers[layer]))
    meta = asdict(trace.meta)
    meta["labels"] = {
        name: {"names": list(labels.names), "scope": labels.scope} for name, labels in trace.labels.items()
    }
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        contiguous = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
        save_file(contiguous, partial, metadata={METADATA: json.dumps(meta)})
        usual_mode(partial)
        partial.replace(target)
    except (OSError, SafetensorError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise InputError(f"{target} cannot be written: {shown(reason, quote=False)}.") from None
    finally:
        with suppress(OSError):  # such as a name that is too long to be there
            partial.unlink(missing_ok=True)


def _layer_tensors(layer: int, trace: LayerTrace) -> dict[str, np.ndarray]:
    experts = trace.expert_TK
    if trace.meta.width <= _EMPTY_U8:
        stored = np.where(experts < 0, _EMPTY_U8, experts).astype(np.uint8)
    else:
        stored = experts.astype(np.int16)
    tensors: dict[str, np.ndarray] = {
        "experts": stored,
        "gates": trace.gate_TK.astype(np.float32),
        "entropy": trace.entropy_T.astype(np.float32),
        "margin": trace.margin_T.astype(np.float32),
        "mean_probs": trace.mean_probs_E.astype(np.float64),
    }
    if (trace.sent_TK != trace.wanted_TK).any():
        tensors["sent"] = trace.sent_TK
    if trace.logits_TE is not None:
        tensors["logits"] = trace.logits_TE.astype(np.float32)
    if trace.hidden_nd is not None:
        fits = trace.hidden_nd.size == 0 or float(np.abs(trace.hidden_nd).max()) < 6e4
        tensors["hidden"] = trace.hidden_nd.astype(np.float16 if fits else np.float32)
    return {f"layer.{layer}.{name}": value for name, value in tensors.items()}


class _Layers(Mapping[int, LayerTrace]):
    """Layers of a trace file, each read when first asked for and kept."""

    def __init__(self, path: Path, metas: tuple[LayerMeta, ...], names: frozenset[str]) -> None:
        self._path, self._names = path, names
        self._metas = {meta.layer: meta for meta in metas}
        self._cache: dict[int, LayerTrace] = {}

    def __iter__(self) -> Iterator[int]:
        return iter(self._metas)

    def __len__(self) -> int:
        return len(self._metas)

    def __getitem__(self, layer: int) -> LayerTrace:
        if layer not in self._cache:
            self._cache[layer] = self._read(layer)
        return self._cache[layer]

    def _read(self, layer: int) -> LayerTrace:
        meta = self._metas[layer]
        with safe_open(self._path, framework="numpy") as file:

            def get(name: str) -> Any:
                full = f"layer.{layer}.{name}"
                return file.get_tensor(full) if full in self._names else None

            stored = get("experts")
            experts = stored.astype(np.int32)
            if stored.dtype == np.uint8:
                experts[stored == _EMPTY_U8] = -1
            sent = get("sent")
            hidden = get("hidden")
            made = LayerTrace(
                meta=meta,
                expert_TK=experts,
                gate_TK=get("gates"),
                sent_TK=experts >= 0 if sent is None else sent,
                entropy_T=get("entropy"),
                margin_T=get("margin"),
                mean_probs_E=get("mean_probs"),
                logits_TE=get("logits"),
                hidden_nd=None if hidden is None else hidden.astype(np.float32),
            )
        check_layer(self._path.name, made)
        return made


def read_trace(path: str | Path) -> Trace:
    """Open a trace file: its header and everything but the layers is checked now, each layer when it is first read.

    Raises `InputError` for a file that is not a trace of a version this release reads, or that contradicts itself.
    """
    source = Path(path)
    header = read_header(source)
    meta = parse_meta(source.name, header)
    check_header(source.name, header, meta)
    names = frozenset(header.tensors)
    with safe_open(source, framework="numpy") as file:

        def get(name: str) -> Any:
            return file.get_tensor(name) if name in names else None

        text = get("text.bytes")
        trace = Trace(
            meta=TraceMeta(**{item.name: getattr(meta, item.name) for item in fields(TraceMeta)}),
            doc=get("token.doc"),
            position=get("token.position"),
            labels={
                name: Labels(codes=get(f"label.{name}"), names=item.names, scope=item.scope)
                for name, item in meta.labels.items()
            },
            layers=_Layers(source, meta.layers, names),
            token_id=get("token.id"),
            start=get("token.start"),
            end=get("token.end"),
            text=b"" if text is None else text.tobytes(),
            images=get("image.pixels"),
            sample=get("sample.tokens"),
        )
    check_values(source.name, trace)
    return trace
