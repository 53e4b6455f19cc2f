"""Attacks on the safetensors header, runnable: each is refused in one sentence, and real files pass."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from moescope.errors import InputError
from moescope.files import read_header

F32_2x2 = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


def craft(path: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def refuse(path: Path, match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        read_header(path)
    sentence = str(caught.value)
    assert "\n" not in sentence and len(sentence) < 300 and sentence.endswith(".")
    assert str(path.parent) not in sentence


def test_a_real_file_is_described_as_it_is(tmp_path: Path) -> None:
    arrays = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.zeros((0, 4), np.int64),
        "s": np.array(3.0),
    }
    save_file(arrays, tmp_path / "x.safetensors", metadata={"k": "v"})
    header = read_header(tmp_path / "x.safetensors")
    raw = (tmp_path / "x.safetensors").read_bytes()
    assert header.metadata == {"k": "v"} and set(header.tensors) == {"a", "b", "s"}
    for name, array in arrays.items():
        entry = header.tensors[name]
        assert entry.shape == array.shape and entry.size == array.size
        assert raw[entry.start : entry.end] == array.tobytes()


def test_a_header_that_looks_like_a_pickle_by_its_length_is_read(tmp_path: Path) -> None:
    """640 + 2 bytes of header begin with the bytes 80 02, as a pickle of protocol 2 does."""
    text = json.dumps({"x": F32_2x2}).encode().ljust(0x280)
    read_header(craft(tmp_path / "x.safetensors", text, bytes(16)))


ENTRY_ATTACKS = {
    "unknown dtype": ({"x": F32_2x2 | {"dtype": "F31"}}, "unknown dtype 'F31'"),
    "dtype is a list": ({"x": F32_2x2 | {"dtype": ["F32"]}}, "unknown dtype"),
    "nine dimensions": ({"x": F32_2x2 | {"shape": [2, 2, 1, 1, 1, 1, 1, 1, 1]}}, "9 dimensions, more than 8"),
    "shape product": ({"x": F32_2x2 | {"shape": [2, 3]}}, "needs 24 bytes but its offsets span 16"),
    "overflowing product": ({"x": F32_2x2 | {"shape": [1 << 61, 1 << 61, 1 << 10]}}, "needs .* bytes but"),
    "negative dimension": ({"x": F32_2x2 | {"shape": [-2, -2]}}, "non-negative"),
    "float dimension": ({"x": F32_2x2 | {"shape": [2.0, 2]}}, "non-negative integers"),
    "true as a dimension": ({"x": F32_2x2 | {"shape": [True, 4]}}, "non-negative integers"),
    "descending offsets": ({"x": F32_2x2 | {"data_offsets": [16, 0]}}, "ascending"),
    "three offsets": ({"x": F32_2x2 | {"data_offsets": [0, 8, 16]}}, "ascending"),
    "overlap": ({"x": F32_2x2, "y": F32_2x2 | {"data_offsets": [8, 24]}}, "overlap"),
    "same bytes twice": ({"x": F32_2x2, "y": F32_2x2}, "overlap"),
    "hole": ({"x": {"dtype": "U8", "shape": [12], "data_offsets": [4, 16]}}, "belong to no tensor"),
    "outside the file": ({"x": F32_2x2 | {"shape": [2, 200], "data_offsets": [0, 1600]}}, "truncated"),
    "extra field": ({"x": F32_2x2 | {"url": "http://"}}, "exactly dtype, shape and data_offsets"),
    "missing field": ({"x": {"dtype": "F32", "shape": [2, 2]}}, "exactly dtype"),
    "entry is a number": ({"x": 3}, "exactly dtype"),
    "metadata not texts": ({"__metadata__": {"a": 1}, "x": F32_2x2}, "table of texts"),
    "a list": ([1, 2], "does not start with a brace"),
    "long name": ({"n" * 100_000: F32_2x2 | {"dtype": "?"}}, "unknown dtype"),
}


@pytest.mark.parametrize("name", ENTRY_ATTACKS)
def test_a_lying_entry_is_refused(name: str, tmp_path: Path) -> None:
    header, match = ENTRY_ATTACKS[name]
    refuse(craft(tmp_path / "x.safetensors", header, bytes(16)), match)


def test_duplicate_names_are_refused(tmp_path: Path) -> None:
    entry = json.dumps(F32_2x2)
    refuse(craft(tmp_path / "x.safetensors", f'{{"x":{entry},"x":{entry}}}'.encode(), bytes(16)), "names 'x' twice")


def test_bytes_behind_the_last_tensor_are_refused(tmp_path: Path) -> None:
    refuse(craft(tmp_path / "x.safetensors", {"x": F32_2x2}, bytes(17)), "1 bytes stand behind")


@pytest.mark.parametrize("keep", [0, 3, 8, 9, 40, -1])
def test_a_truncated_file_is_refused(keep: int, tmp_path: Path) -> None:
    path = craft(tmp_path / "x.safetensors", {"x": F32_2x2}, bytes(16))
    path.write_bytes(path.read_bytes()[:keep])
    refuse(path, "truncated|not a safetensors file")


@pytest.mark.parametrize("length", [0, 1, 1000, 1 << 40, (1 << 64) - 1])
def test_a_lying_length_is_refused(length: int, tmp_path: Path) -> None:
    refuse(craft(tmp_path / "x.safetensors", {"x": F32_2x2}, bytes(16), length=length), "claims|truncated|length")


def test_a_header_of_200_mb_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = craft(tmp_path / "x.safetensors", b'{"', length=200_000_000)
    with path.open("r+b") as file:
        file.truncate(200_000_100)  # sparse: no disk is used
    read: list[int] = []
    original = Path.open

    def counting(self: Path, *args: Any, **kwargs: Any) -> Any:
        file = original(self, *args, **kwargs)
        inner = file.read
        file_read = lambda n=-1: (read.append(n), inner(n))[1]  # noqa: E731

        class Counted:
            read = staticmethod(file_read)
            __enter__ = lambda self: self  # noqa: E731
            __exit__ = lambda self, *a: file.close()  # noqa: E731

        return Counted()

    monkeypatch.setattr(Path, "open", counting)
    refuse(path, "claims 200,000,000 bytes")
    assert read == [16]


@pytest.mark.parametrize(
    "text",
    [
        b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"x": NaN}',
        b'{"x": ' + b"9" * 10_000 + b"}",
        b"{\xff\xfe}",
        b'{"x":',
    ],
    ids=["deep", "nan", "digits", "utf8", "cut"],
)
def test_a_header_that_is_not_honest_json_is_refused(text: bytes, tmp_path: Path) -> None:
    refuse(craft(tmp_path / "x.safetensors", text), "JSON|nested too deep")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_renamed_pickle_is_named_as_one_and_not_run(protocol: int, tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps(Attack(), protocol=protocol))
    refuse(path, "Python pickle")
    assert not (tmp_path / "ran").exists()


def test_a_renamed_torch_file_is_named_as_a_pickle(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"a": 1}))
    refuse(path, "zip archive or a PyTorch pickle")


def test_a_folder_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    refuse(tmp_path / "none.safetensors", "no such file")
    (tmp_path / "folder.safetensors").mkdir()
    refuse(tmp_path / "folder.safetensors", "no such file")
