"""From vectors to a map: one, or a series of maps of the same points that move as little as the vectors do."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np

from moescope.errors import InputError
from moescope.projection import cache as files
from moescope.projection import layout
from moescope.projection.base import Method, Progress, Projection, checked
from moescope.projection.pca import principal_plane
from moescope.projection.quality import trustworthiness

METHODS: Final[tuple[Method, ...]] = ("pca", "umap")
VERSION: Final = 1
"""Raised whenever the same vectors would be placed otherwise, so that no cached map of an older release is shown."""


def project(
    vectors_nd: np.ndarray,
    method: Method = "pca",
    *,
    seed: int = 0,
    cache: Path | None = None,
    progress: Progress | None = None,
    after: Projection | None = None,
) -> Projection:
    """Place n vectors [n, d] in the plane, by PCA (exact) or UMAP (`layout`), from the cache if it is there.

    cache: folder of stored projections, made if need be. after: a map of the same points a step earlier: PCA is turned
    (and mirrored) to it, UMAP starts from it. Raises `InputError` for an unknown method, vectors that are not finite,
    or an `after` of other points.
    """
    if method not in METHODS:
        raise InputError(f"There is no projection {method!r}; there are {', '.join(METHODS)}.")
    vectors = checked(vectors_nd)
    if after is not None and len(after.xy) != len(vectors):
        raise InputError(f"The map to start from has {len(after.xy):,} points, but there are {len(vectors):,} vectors.")
    key = projection_key(vectors, method, seed=seed, after=after)
    if cache is not None:
        stored = files.load(Path(cache), key, len(vectors))
        if stored is not None:
            return stored
    made = _compute(vectors, method, seed, key, progress, after)
    if cache is not None:
        files.store(Path(cache), made)
    return made


def cached_projection(
    vectors_nd: np.ndarray, method: Method, *, cache: Path, seed: int = 0, after: Projection | None = None
) -> Projection | None:
    """What `project` would answer from the cache, or None if it would have to compute."""
    vectors = checked(vectors_nd)
    return files.load(Path(cache), projection_key(vectors, method, seed=seed, after=after), len(vectors))


def projection_key(vectors_nd: np.ndarray, method: Method, *, seed: int = 0, after: Projection | None = None) -> str:
    """Content hash, 64 hexadecimal digits: vectors, method with parameters and version, seed, and the start."""
    vectors = np.ascontiguousarray(vectors_nd, dtype=np.float32)
    decides: dict[str, object] = {"version": VERSION, "method": method, "seed": seed, "shape": vectors.shape}
    if after is not None:
        decides["after"] = [after.key, hashlib.sha256(after.xy.tobytes()).hexdigest()]
    if method == "umap":
        decides["umap-learn"] = version("umap-learn")
        names = ("NEIGHBOURS", "MIN_DIST", "EPOCHS", "EPOCHS_AFTER", "RATE_AFTER")
        decides |= {name: getattr(layout, name) for name in names}
    seen = hashlib.sha256(json.dumps(decides, sort_keys=True).encode())
    seen.update(vectors.data)
    return seen.hexdigest()


def project_series(
    vectors_nd: Sequence[np.ndarray],
    method: Method = "pca",
    *,
    seed: int = 0,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> list[Projection]:
    """A map for each step of the same n points, each starting from and turned to the one before (see `project`).

    Raises `InputError` if the steps do not have the same number of points.
    """
    made: list[Projection] = []
    for step, vectors in enumerate(vectors_nd):
        part = None if progress is None else _part(progress, step, len(vectors_nd))
        made.append(project(vectors, method, seed=seed, cache=cache, progress=part, after=made[-1] if made else None))
    return made


def warm_up() -> None:
    """Import UMAP and have numba compile what it needs, so that a worker's first map is as fast as its next.

    Seconds where it was never done on this machine; later processes find the compiled code on disk.
    """
    vectors = np.random.default_rng(0).normal(size=(64, 8))
    project(vectors, "umap")


def turn_to(xy: np.ndarray, target_xy: np.ndarray) -> np.ndarray:
    """float32 [n, 2]: `xy` moved, turned and mirrored, not scaled, to lie as near as can be to `target_xy`.

    Orthogonal Procrustes (Schoenemann 1966): U V' from the singular value decomposition of xy' target, both centred.
    """
    centre, goal = xy.mean(axis=0, dtype=np.float64), target_xy.mean(axis=0, dtype=np.float64)
    left, _, right = np.linalg.svd((xy - centre).T @ (target_xy - goal))
    turned: np.ndarray = (xy - centre) @ (left @ right) + goal
    return turned.astype(np.float32)


def _compute(
    vectors: np.ndarray, method: Method, seed: int, key: str, progress: Progress | None, after: Projection | None
) -> Projection:
    began = time.perf_counter()
    note, explained = "", None
    if method == "umap" and len(vectors) < layout.FEWEST_POINTS:
        note = f"Too few points for UMAP ({len(vectors)}): placed by PCA."
    if method == "pca" or note:
        xy, explained = principal_plane(vectors, seed)
    else:
        start = principal_plane(vectors, seed)[0] if after is None else after.xy
        xy = layout.umap_layout(vectors, start, seed=seed, after=after is not None, progress=progress)
    if after is not None:
        xy = turn_to(xy, after.xy)
    if progress is not None:
        progress("judging the map", layout.PLACED)
    trust, neighbours = trustworthiness(vectors, xy, seed=seed)
    return Projection(
        xy=xy,
        method=method,
        seed=seed,
        explained=explained,
        trustworthiness=trust,
        neighbours=neighbours,
        seconds=time.perf_counter() - began,
        key=key,
        note=note,
    )


def _part(progress: Progress, step: int, steps: int) -> Progress:
    return lambda stage, done: progress(f"{stage} ({step + 1} of {steps})", (step + done) / steps)
