"""Maps of vectors: PCA at once, UMAP the fast way, cached by content. Importing it imports no sklearn, no umap."""

from moescope.projection.base import Method, Progress, Projection
from moescope.projection.projecting import (
    METHODS,
    cached_projection,
    project,
    project_series,
    projection_key,
    turn_to,
    warm_up,
)

__all__ = [
    "METHODS",
    "Method",
    "Progress",
    "Projection",
    "cached_projection",
    "project",
    "project_series",
    "projection_key",
    "turn_to",
    "warm_up",
]
