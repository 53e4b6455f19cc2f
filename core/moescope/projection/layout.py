"""UMAP by umap-learn, the fast way: a neighbour graph made beforehand, a start from known positions, 200 epochs.

umap-learn's default calls Python once a pair below 4,096 points, and starts from a spectral embedding.
"""

from __future__ import annotations

import importlib
import re
import warnings
from contextlib import suppress
from functools import cache
from typing import Any, Final

import numpy as np

from moescope.projection.base import Progress
from moescope.projection.neighbours import nearest

NEIGHBOURS: Final = 15
MIN_DIST: Final = 0.1
EPOCHS: Final = 200
EPOCHS_AFTER: Final = 40
RATE_AFTER: Final = 0.25
FEWEST_POINTS: Final = 10
SLOW_TO_COMPILE: Final = (
    ("umap.umap_", "smooth_knn_dist"),
    ("umap.umap_", "compute_membership_strengths"),
    ("umap.layouts", "_nb_optimize_layout_euclidean_single_epoch"),
)
PLACED: Final = 0.95
"""How far the work is when the points are placed."""


def umap_layout(
    vectors_nd: np.ndarray, start_xy: np.ndarray, *, seed: int, after: bool = False, progress: Progress | None = None
) -> np.ndarray:
    """float32 [n, 2] of at least 10 vectors, started from `start_xy`; the same seed gives the same positions.

    after: the start is a map of the same points a step earlier: fewer and smaller steps, so that points stay where
    they were.
    """
    umap = _imported()
    k = min(NEIGHBOURS, len(vectors_nd) - 1)
    if progress is not None:
        progress("finding neighbours", 0.0)
    neighbours = nearest(vectors_nd, k, seed)
    shown: dict[str, Any] = {}
    if progress is not None:
        epochs = EPOCHS_AFTER if after else EPOCHS
        shown = {"disable": False, "file": _Epochs(progress, epochs), "bar_format": "{n}", "mininterval": 0.2}
    with warnings.catch_warnings():
        # the neighbour graph comes without a search index, which only new points would need
        warnings.filterwarnings("ignore", message=r"precomputed_knn\[2\]")
        layout = umap.UMAP(
            n_neighbors=k,
            min_dist=MIN_DIST,
            n_epochs=EPOCHS_AFTER if after else EPOCHS,
            learning_rate=RATE_AFTER if after else 1.0,
            init=_start(start_xy, seed),
            precomputed_knn=neighbours,
            random_state=seed,
            n_jobs=1,
            tqdm_kwds=shown,
        )
        xy: np.ndarray = layout.fit_transform(vectors_nd)
    return xy.astype(np.float32)


def _start(xy: np.ndarray, seed: int) -> np.ndarray:
    """Positions within ±10 with a little noise: equal vectors must not start on one point, where nothing parts them."""
    largest = float(np.abs(xy).max())
    scaled = xy / largest * 10 if largest > 0 else xy
    noise = np.random.default_rng(seed).normal(scale=1e-4, size=xy.shape)
    return np.ascontiguousarray(scaled + noise, dtype=np.float32)


@cache
def _imported() -> Any:
    """umap-learn, with what numba compiles for it kept on disk: 4 s of every new process become 0.1 s."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # umap says that TensorFlow is missing, which nothing here needs
        import umap
    for module, name in SLOW_TO_COMPILE:
        function: Any = getattr(importlib.import_module(module), name, None)
        if hasattr(function, "enable_caching"):
            with suppress(RuntimeError):  # no folder to keep it in can be written
                function.enable_caching()
    return umap


class _Epochs:
    """A file that tqdm writes its counter to, because that is the only word umap-learn gives while it works."""

    encoding = "utf-8"

    def __init__(self, progress: Progress, epochs: int) -> None:
        self.progress, self.epochs = progress, epochs

    def write(self, text: str) -> int:
        found = re.search(r"\d+", text)
        if found:
            self.progress("placing points", min(PLACED, 0.05 + (PLACED - 0.05) * int(found[0]) / self.epochs))
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return False
