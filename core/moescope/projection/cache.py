"""Projections on disk, one file per content hash. A file that cannot be read is as good as none."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np

from moescope.projection.base import Projection


def load(folder: Path, key: str, num_points: int) -> Projection | None:
    """The stored projection of `num_points` points; None if there is none, or the file is not what it should be."""
    try:
        with (folder / f"{key}.npz").open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            fields = {name: file[name] for name in file.files}
        explained = np.asarray(fields["explained"], np.float64)
        found = Projection(
            xy=fields["xy"].astype(np.float32),
            method=str(fields["method"]),  # type: ignore[arg-type]
            seed=int(fields["seed"]),
            explained=(float(explained[0]), float(explained[1])) if explained.size == 2 else None,
            trustworthiness=float(fields["trustworthiness"]),
            neighbours=int(fields["neighbours"]),
            seconds=float(fields["seconds"]),
            key=str(fields["key"]),
            note=str(fields["note"]),
        )
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, zipfile.LargeZipFile):
        return None
    sound = found.xy.shape == (num_points, 2) and bool(np.isfinite(found.xy).all())
    return found if sound and found.key == key and found.method in ("pca", "umap") else None


def store(folder: Path, projection: Projection) -> None:
    """Write the projection; the file appears complete or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{projection.key}.npz"
    partial = folder / f".{projection.key}.{os.getpid()}.partial"
    try:
        with partial.open("wb") as file:
            np.savez(
                file,
                xy=projection.xy,
                method=projection.method,
                seed=projection.seed,
                explained=np.array(projection.explained or (), np.float64),
                trustworthiness=projection.trustworthiness,
                neighbours=projection.neighbours,
                seconds=projection.seconds,
                key=projection.key,
                note=projection.note,
            )
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
