"""The cache: hits, misses, and files that are not what they should be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from moescope.errors import InputError
from moescope.projection import cached_projection, project, projection_key


@pytest.fixture
def vectors() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)


def test_a_stored_projection_is_read_back_whole(vectors: np.ndarray, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "projections"
    assert cached_projection(vectors, "pca", cache=folder) is None
    made = project(vectors, "pca", cache=folder)
    read = cached_projection(vectors, "pca", cache=folder)
    assert read is not None and [file.name for file in folder.iterdir()] == [f"{made.key}.npz"]
    np.testing.assert_array_equal(read.xy, made.xy)
    assert (read.explained, read.trustworthiness, read.seconds) == (made.explained, made.trustworthiness, made.seconds)
    assert project(vectors, "pca", cache=folder).seconds == made.seconds


def test_whatever_decides_the_positions_is_in_the_key(vectors: np.ndarray) -> None:
    start = project(vectors, "pca")
    moved = vectors.copy()
    moved[3, 2] += 1e-3
    keys = [
        projection_key(vectors, "pca"),
        projection_key(vectors, "umap"),
        projection_key(vectors, "pca", seed=1),
        projection_key(vectors, "pca", after=start),
        projection_key(vectors.reshape(60, 2), "pca"),
        projection_key(moved, "pca"),
    ]
    assert len(set(keys)) == len(keys)
    assert projection_key(vectors.astype(np.float64), "pca") == keys[0] == start.key
    assert projection_key(np.asfortranarray(vectors), "pca") == keys[0]


@pytest.mark.parametrize("damage", ["empty", "cut", "noise", "other points", "nan", "other key", "pickle"])
def test_a_damaged_file_is_ignored_and_written_anew(damage: str, vectors: np.ndarray, tmp_path: Path) -> None:
    made = project(vectors, "pca", cache=tmp_path)
    file = tmp_path / f"{made.key}.npz"
    whole = file.read_bytes()
    with np.load(file) as stored:
        fields = dict(stored)
    if damage == "other points":
        np.savez(file, **{**fields, "xy": made.xy[:7]})
    elif damage == "nan":
        np.savez(file, **{**fields, "xy": np.full_like(made.xy, np.nan)})
    elif damage == "other key":
        np.savez(file, **{**fields, "key": "0" * 64})
    elif damage == "pickle":
        np.savez(file, **{**fields, "method": np.array([{"a": print}], dtype=object)})
    else:
        file.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "noise": b"PK" + bytes(200)}[damage])
    assert cached_projection(vectors, "pca", cache=tmp_path) is None
    np.testing.assert_array_equal(project(vectors, "pca", cache=tmp_path).xy, made.xy)
    assert cached_projection(vectors, "pca", cache=tmp_path) is not None
    assert [kept.name for kept in tmp_path.iterdir()] == [file.name]


def test_what_cannot_be_projected_is_refused(vectors: np.ndarray, tmp_path: Path) -> None:
    broken = vectors.copy()
    broken[5, 0], broken[9, 1] = np.nan, np.inf
    with pytest.raises(InputError, match=r"2 of 30 vectors are not finite \(the first is 5\)"):
        project(broken, "pca", cache=tmp_path)
    with pytest.raises(InputError, match=r"shape \(0, 4\)"):
        project(vectors[:0], "pca", cache=tmp_path)
    with pytest.raises(InputError, match="no projection 'tsne'; there are pca, umap"):
        project(vectors, "tsne", cache=tmp_path)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_importing_projections_imports_nothing_heavy() -> None:
    code = (
        "import sys, moescope.projection; print([m for m in ('torch', 'sklearn', 'scipy', 'umap') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
