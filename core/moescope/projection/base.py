"""What a projection is: positions of n vectors in the plane, and how far to believe them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from moescope.errors import InputError

Method = Literal["pca", "umap"]
Progress = Callable[[str, float], None]
"""Told the stage and how far all of the work is, 0..1. An exception raised in it ends the work."""


@dataclass(frozen=True, kw_only=True)
class Projection:
    """Positions of n vectors in the plane. Axes of UMAP mean nothing, nor do distances between its clusters.

    xy:              float32 [n, 2], finite.
    explained:       share of the variance along x and along y (PCA alone; before any turning).
    trustworthiness: Venna and Kaski 2001, with `neighbours` neighbours: 1 if neighbours on the map are neighbours in
                     the vectors' own space; NaN for fewer than 4 points.
    seconds:         that it took when it was computed.
    key:             content hash of the vectors and of all that decides the positions.
    note:            what a reader must know; "" if nothing.
    """

    xy: np.ndarray
    method: Method
    seed: int
    explained: tuple[float, float] | None
    trustworthiness: float
    neighbours: int
    seconds: float
    key: str
    note: str = ""


def checked(vectors_nd: np.ndarray) -> np.ndarray:
    """The vectors as contiguous float32 [n, d]. Raises `InputError` if they are not n finite vectors."""
    if vectors_nd.ndim != 2 or 0 in vectors_nd.shape:
        raise InputError(f"There is nothing to project: the vectors have shape {vectors_nd.shape}.")
    vectors = np.ascontiguousarray(vectors_nd, dtype=np.float32)
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if bad.size:
        raise InputError(
            f"{bad.size:,} of {len(vectors):,} vectors are not finite (the first is {bad[0]}): no map of them."
        )
    return vectors
