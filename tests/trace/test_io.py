"""A trace file says what was written; files that lie are refused in one sentence. Runnable attacks."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from moescope.errors import InputError
from moescope.trace.io import read_trace, write_trace
from moescope.trace.schema import TENSORS, LayerTrace, Trace
from synthetic import make_trace

LAYER_ARRAYS = ("expert_TK", "gate_TK", "sent_TK", "entropy_T", "margin_T", "mean_probs_E", "logits_TE")


def small(**options: Any) -> Trace:
    return make_trace(**{"tokens": 60, "layers": 2, "experts": 5, "docs": 4, "sample": 20, **options})


def assert_same(first: Trace, second: Trace) -> None:
    assert first.meta == second.meta and first.text == second.text
    for name in ("doc", "position", "token_id", "start", "end", "sample", "images"):
        assert np.array_equal(getattr(first, name), getattr(second, name)) or getattr(first, name) is None
    assert first.labels.keys() == second.labels.keys() and list(first.layers) == list(second.layers)
    for name, labels in first.labels.items():
        other = second.labels[name]
        assert (labels.names, labels.scope) == (other.names, other.scope)
        assert np.array_equal(labels.codes, other.codes)
    for layer, one in first.layers.items():
        two = second.layers[layer]
        assert one.meta == two.meta
        for name in LAYER_ARRAYS:
            a, b = getattr(one, name), getattr(two, name)
            assert a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
        assert two.hidden_nd is not None and two.hidden_nd.dtype == np.float32
        assert np.allclose(one.hidden_nd, two.hidden_nd, rtol=1e-3, atol=1e-3)  # stored as float16


@pytest.mark.parametrize("experts", [5, 255, 256, 700])
def test_what_was_written_is_read(experts: int, tmp_path: Path) -> None:
    trace = small(experts=experts)
    write_trace(trace, tmp_path / "t.safetensors")
    assert_same(trace, read_trace(tmp_path / "t.safetensors"))


def test_empty_slots_and_drops_survive(tmp_path: Path) -> None:
    trace = small()
    expert, sent = trace.layers[1].expert_TK.copy(), trace.layers[1].sent_TK.copy()
    gate = trace.layers[1].gate_TK.copy()
    expert[3, 1], sent[3, 1], gate[3, 1] = -1, False, 0.0
    sent[4, 0], gate[4, 0] = False, 0.0
    layers = dict(trace.layers) | {1: replace(trace.layers[1], expert_TK=expert, sent_TK=sent, gate_TK=gate)}
    write_trace(replace(trace, layers=layers), tmp_path / "t.safetensors")
    layer = read_trace(tmp_path / "t.safetensors").layers[1]
    assert np.array_equal(layer.expert_TK, expert) and np.array_equal(layer.sent_TK, sent)


def test_hidden_vectors_too_large_for_float16_keep_float32(tmp_path: Path) -> None:
    trace = small()
    hidden = trace.layers[0].hidden_nd
    assert hidden is not None
    large = replace(trace.layers[0], hidden_nd=hidden * np.float32(1e6))
    write_trace(replace(trace, layers=dict(trace.layers) | {0: large}), tmp_path / "t.safetensors")
    assert np.array_equal(read_trace(tmp_path / "t.safetensors").layers[0].hidden_nd, large.hidden_nd)


def test_optional_parts_may_be_absent(tmp_path: Path) -> None:
    trace = small()
    bare = {k: replace(layer, logits_TE=None, hidden_nd=None) for k, layer in trace.layers.items()}
    kind = replace(trace.meta, kind="vectors")
    parts = {"text": b"", "start": None, "end": None, "token_id": None, "sample": None, "labels": {}}
    write_trace(replace(trace, meta=kind, layers=bare, **parts), tmp_path / "t.safetensors")
    found = read_trace(tmp_path / "t.safetensors")
    assert found.layers[0].logits_TE is None and found.text == b"" and found.labels == {} and found.sample is None


def test_images_are_kept(tmp_path: Path) -> None:
    images = np.arange(4 * 8 * 8, dtype=np.uint8).reshape(4, 8, 8)
    write_trace(replace(small(), images=images), tmp_path / "t.safetensors")
    assert np.array_equal(read_trace(tmp_path / "t.safetensors").images, images)


def test_a_trace_file_has_the_usual_mode_and_nothing_else_is_left(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_trace(small(), tmp_path / "t.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "t.safetensors").stat().st_mode) == 0o640
    broken = replace(small(), meta=replace(small().meta, data={"x": object()}))
    with pytest.raises(TypeError):
        write_trace(broken, tmp_path / "u.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["t.safetensors"]


def test_layers_are_read_when_asked_for_and_kept(tmp_path: Path) -> None:
    write_trace(small(), tmp_path / "t.safetensors")
    trace = read_trace(tmp_path / "t.safetensors")
    assert trace.layers[1] is trace.layers[1] and len(trace.layers) == 2
    with pytest.raises(KeyError):
        trace.layers[7]


def test_every_tensor_of_a_file_is_in_the_table(tmp_path: Path) -> None:
    write_trace(replace(small(), images=np.zeros((4, 2, 2), np.uint8)), tmp_path / "t.safetensors")
    names = set(load_file(tmp_path / "t.safetensors"))
    patterns = {
        spec.name.format(layer=layer, label=name) for spec in TENSORS for layer in (0, 1) for name in small().labels
    }
    assert names <= patterns
    assert {spec.name for spec in TENSORS if "{" not in spec.name} <= names


Tensors = dict[str, Any]
Meta = dict[str, Any]
Lie = Callable[[Tensors, Meta], Any]


def put(name: str, where: Any, value: Any) -> Lie:
    def apply(tensors: Tensors, meta: Meta) -> None:
        tensors[name][where] = value

    return apply


def set_to(name: str, value: Any) -> Lie:
    return lambda tensors, meta: tensors.__setitem__(name, value)


def cast(name: str, dtype: Any) -> Lie:
    return lambda tensors, meta: tensors.__setitem__(name, tensors[name].astype(dtype))


def cut(name: str, part: Any) -> Lie:
    return lambda tensors, meta: tensors.__setitem__(name, np.ascontiguousarray(tensors[name][part]))


def drop(name: str) -> Lie:
    return lambda tensors, meta: tensors.pop(name)


def say(**values: Any) -> Lie:
    return lambda tensors, meta: meta.update(values)


def say_layer(**values: Any) -> Lie:
    return lambda tensors, meta: meta["layers"][0].update(values)


LIES: dict[str, tuple[Lie, str]] = {
    "dtype": (cast("token.doc", np.int64), "'token.doc' is I64, expected I32"),
    "rank": (cut("layer.0.gates", (slice(None), 0)), r"'layer.0.gates' has shape \[60\], expected \[T, K\]"),
    "tokens differ": (cut("token.position", slice(5)), "T = 5 where others have 60"),
    "slots differ": (cut("layer.0.gates", (slice(None), slice(1))), "K = . where others have"),
    "experts differ": (cut("layer.0.logits", (slice(None), slice(4))), "E = 4 where others have 5"),
    "probs differ": (cut("layer.0.mean_probs", slice(4)), "E = 4 where others have 5"),
    "sample differs": (cut("layer.0.hidden", slice(4)), "n = "),
    "no tokens": (lambda t, m: [t.update({k: v[:0]}) for k, v in t.items() if v.shape[:1] == (60,)], "no tokens"),
    "missing": (drop("layer.1.experts"), "lacks tensor 'layer.1.experts'"),
    "missing label": (drop("label.domain"), "names the label 'domain' and lacks its tensor"),
    "missing sample": (drop("sample.tokens"), "not which tokens they are of"),
    "missing text": (drop("text.bytes"), "come together"),
    "unknown tensor": (set_to("evil", np.zeros(3)), "'evil' does not belong"),
    "unknown layer": (set_to("layer.9.gates", np.zeros((60, 2), np.float32)), "'layer.9.gates' does not belong"),
    "unknown label": (set_to("label.evil", np.zeros(60, np.int16)), "'label.evil' does not belong"),
    "doc descends": (put("token.doc", 5, 3), "not ascending"),
    "doc negative": (put("token.doc", slice(None), -1), "not ascending"),
    "doc absurd": (put("token.doc", -1, 2**31 - 1), "not ascending"),
    "position negative": (put("token.position", 3, -1), "negative positions"),
    "text overrun": (put("token.end", -1, 10**6), "outside text.bytes"),
    "text negative": (put("token.start", 0, -1), "outside text.bytes"),
    "text inverted": (put("token.start", 7, 10**6), "outside text.bytes"),
    "text descends": (put("token.start", 30, 0), "does not ascend"),
    "sample descends": (put("sample.tokens", 3, 0), "not ascending token numbers"),
    "sample outside": (put("sample.tokens", -1, 60), "not ascending token numbers"),
    "label beyond its names": (put("label.domain", 0, 4), "codes outside its 4 names"),
    "label below -1": (put("label.domain", 0, -2), "codes outside its 4 names"),
    "E = 0": (say_layer(num_experts=0), "states 0 experts"),
    "E absurd": (say_layer(num_experts=10**9), "states 1000000000 experts"),
    "k > E": (say_layer(k=6), "states k = 6 of 5 experts"),
    "layers descend": (lambda t, m: m["layers"].reverse(), "ascending numbers of blocks"),
    "layer twice": (lambda t, m: m["layers"].append(m["layers"][1]), "ascending numbers of blocks"),
    "no layers": (say(layers=[]), "ascending numbers of blocks"),
    "layer is a text": (say_layer(layer="x"), "metadata are wrong"),
    "scope": (lambda t, m: m["labels"]["domain"].update(scope="galaxy"), "metadata are wrong"),
    "version": (say(version=2), "version 2; this release reads version 1"),
    "version of another shape": (lambda t, m: (m.clear(), m.update(version=7)), "version 7; this release"),
    "expert beyond E": (put("layer.0.experts", (2, 0), 5), "layer 0 names experts beyond its 5"),
    "expert below -1": (set_to("layer.0.experts", np.full((60, 2), -2, np.int16)), "names experts beyond"),
    "gate NaN": (put("layer.0.gates", (2, 0), np.nan), "gates that are not finite"),
    "gate where not sent": (put("layer.0.experts", (2, 0), 255), "weighs assignments that were not sent"),
    "sent where not wanted": (
        lambda t, m: (
            t["layer.0.experts"].__setitem__((2, 0), 255),
            t.update({"layer.0.sent": np.ones((60, 2), bool)}),
        ),
        "did not choose",
    ),
    "entropy": (put("layer.0.entropy", 3, -1), "entropy below 0"),
    "hidden": (put("layer.0.hidden", (0, 0), np.inf), "hidden vectors that are not finite"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lying_trace_is_refused(name: str, tmp_path: Path) -> None:
    lie, match = LIES[name]
    path = tmp_path / "t.safetensors"
    write_trace(small(), path)
    with safe_open(path, framework="numpy") as file:
        meta = json.loads(file.metadata()["moescope_trace"])
    tensors = {key: value.copy() for key, value in load_file(path).items()}
    lie(tensors, meta)
    save_file(tensors, path, metadata={"moescope_trace": json.dumps(meta)})
    with pytest.raises(InputError, match=match) as caught:
        _all_layers(read_trace(path))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300 and str(tmp_path) not in str(caught.value)


def _all_layers(trace: Trace) -> list[LayerTrace]:
    return list(trace.layers.values())


@pytest.mark.parametrize("text", ["{", "[" * 9999, "null", '{"version": 1}', None])
def test_metadata_that_is_no_metadata_is_refused(text: str | None, tmp_path: Path) -> None:
    metadata = None if text is None else {"moescope_trace": text}
    save_file({"x": np.zeros(1)}, tmp_path / "t.safetensors", metadata=metadata)
    with pytest.raises(InputError, match="not a moescope trace" if text is None else "metadata are wrong"):
        read_trace(tmp_path / "t.safetensors")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" + bytes(50), b"\x80\x04" + bytes(50), b"hello" * 20])
def test_files_that_are_no_safetensors_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"t\.safetensors"):
        read_trace(tmp_path / "t.safetensors")
    with pytest.raises(InputError, match="no such file"):
        read_trace(tmp_path / "none.safetensors")


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    for path in (tmp_path / "no" / "folder", tmp_path / ("x" * 300)):
        with pytest.raises(InputError, match="cannot be written"):
            write_trace(make_trace(tokens=20, docs=2), path)
    assert list(tmp_path.iterdir()) == []
