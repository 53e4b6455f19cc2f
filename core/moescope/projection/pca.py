"""Principal components: the plane of largest variance, exact."""

from __future__ import annotations

from typing import Final

import numpy as np

DENSE_UP_TO: Final = 512
FLOAT64_UP_TO: Final = 30_000_000


def principal_plane(vectors_nd: np.ndarray, seed: int = 0) -> tuple[np.ndarray, tuple[float, float]]:
    """float32 [n, 2] centred positions on the first two components, and the share of the variance along each.

    The sign is decided: the loading of largest magnitude is positive. Where there is only one component (n or d is 1,
    or all vectors lie on a line) the second coordinate is 0.
    """
    centred: np.ndarray = vectors_nd.astype(np.float64 if vectors_nd.size <= FLOAT64_UP_TO else np.float32)
    centred = centred - centred.mean(axis=0)
    total = float(np.square(centred).sum())
    xy = np.zeros((len(centred), 2))
    variance = np.zeros(2)
    if total > 0:
        axes_dc = _axes(centred, seed)
        strongest = np.abs(axes_dc).argmax(axis=0)
        axes_dc = axes_dc * np.sign(axes_dc[strongest, np.arange(axes_dc.shape[1])])
        found = centred @ axes_dc
        xy[:, : found.shape[1]] = found
        variance = np.square(xy).sum(axis=0)
        xy[:, variance < 1e-12 * total] = 0
    shares = variance / total if total > 0 else variance
    return xy.astype(np.float32), (float(shares[0]), float(shares[1]))


def _axes(centred_nd: np.ndarray, seed: int) -> np.ndarray:
    """[d, c] orthonormal directions of largest variance, strongest first; c is 2, or 1 where d or n is 1."""
    n, d = centred_nd.shape
    if d == 1:
        return np.ones((1, 1))
    if min(n, d) > DENSE_UP_TO:
        return _lanczos(centred_nd, seed)
    if d <= n:
        return np.linalg.eigh(centred_nd.T @ centred_nd)[1][:, :-3:-1]
    left_nc = np.linalg.eigh(centred_nd @ centred_nd.T)[1]
    right_dc = centred_nd.T @ left_nc[:, :-3:-1]
    lengths = np.linalg.norm(right_dc, axis=0)
    axes: np.ndarray = right_dc / np.where(lengths > 0, lengths, 1)
    return axes


def _lanczos(centred_nd: np.ndarray, seed: int) -> np.ndarray:
    """The same from products with the vectors alone: no d x d matrix is formed."""
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    d = centred_nd.shape[1]
    operator = LinearOperator((d, d), matvec=lambda v: centred_nd.T @ (centred_nd @ v), dtype=centred_nd.dtype)
    start = np.random.default_rng(seed).standard_normal((d,)).astype(centred_nd.dtype)
    try:
        spread, axes_dc = eigsh(operator, k=2, v0=start)
    except ArpackNoConvergence:
        spread, axes_dc = np.linalg.eigh(centred_nd.T @ centred_nd)
    order = np.argsort(-spread)[:2]
    axes: np.ndarray = axes_dc[:, order]
    return axes
