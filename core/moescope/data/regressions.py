"""Made-up regressions: clusters of vectors, each with a linear map of its own from vector to values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moescope.config import Config, doc
from moescope.data.base import Labels, TokenSet, VectorCorpus

_DRAWS = 20
"""Places that are tried for a centre, so that clusters seldom overlap by chance."""
_FLOOR_ITEMS = 20_000
_FLOOR = 1
"""Branch of the seed, beside that of the data."""


@dataclass(frozen=True, kw_only=True)
class RegressionsConfig(Config):
    """Size and shape of the mixture."""

    tokens: int = field(default=8000, metadata=doc("vectors in all, spread evenly over the clusters"))
    clusters: int = field(default=4, metadata=doc("clusters, each with a linear map of its own"))
    dims: int = field(default=8, metadata=doc("features of a vector"))
    outputs: int = field(default=4, metadata=doc("values to be predicted per vector"))
    spread: float = field(
        default=2.0,
        metadata=doc("standard deviation of centres as drawn; of 20 draws the one far from others is taken"),
    )
    noise: float = field(default=0.1, metadata=doc("standard deviation of what is added to every value"))
    seed: int = field(default=0, metadata=doc("of centres, maps, vectors and noise"))

    def __post_init__(self) -> None:
        self.require(1 <= self.clusters <= 10_000, "clusters", "must lie between 1 and 10,000")
        self.require(self.clusters <= self.tokens, "tokens", "must give each cluster at least one vector")
        for name in ("dims", "outputs"):
            self.require(1 <= getattr(self, name) <= 10_000, name, "must lie between 1 and 10,000")
            self.require(self.tokens * getattr(self, name) <= 10**9, "tokens", f"tokens times {name} is at most 1e9")
        maps = self.clusters * self.dims * self.outputs
        self.require(maps <= 10**8, "clusters", "clusters times dims times outputs must be at most 1e8")
        for name in ("spread", "noise"):
            self.require(0 <= getattr(self, name) < float("inf"), name, "must be finite and not negative")
        self.require(self.seed >= 0, "seed", "must not be negative")


class RegressionsCorpus(VectorCorpus):
    """Cluster c: x normal around its own centre, deviation 1 along every feature; y = A_c x + noise.

    The entries of A_c are N(0, 1/dims). One linear map is exactly enough for one cluster, and nothing less than one per
    cluster is enough for all: which cluster a vector is from has to be read off the vector, for which a linear router
    is the right one (the clusters differ in their centres alone). The label `cluster` belongs to documents, of one
    vector each; the `values` are y. `source["floor"]` is the lowest mean squared error of any model.
    """

    Config = RegressionsConfig
    kind = "vectors"
    synthetic = True
    description = "Synthetic: clusters of vectors, each with a linear map of its own to the values to be predicted"

    config: RegressionsConfig

    def token_set(self) -> TokenSet:
        config = self.config
        rng = np.random.default_rng(config.seed)
        centre_CD = _apart(rng, config)
        map_CMD = rng.normal(scale=config.dims**-0.5, size=(config.clusters, config.outputs, config.dims))
        cluster_N = rng.permutation(np.arange(config.tokens) % config.clusters)
        x_ND = centre_CD[cluster_N] + rng.standard_normal((config.tokens, config.dims))
        y_NM = _mapped(map_CMD, cluster_N, x_ND) + config.noise * rng.standard_normal((config.tokens, config.outputs))
        width = len(str(config.clusters - 1))
        names = tuple(f"c{index:0{width}d}" for index in range(config.clusters))
        return TokenSet(
            kind="vectors",
            inputs=x_ND.astype(np.float32),
            doc=np.arange(config.tokens, dtype=np.int32),
            labels={"cluster": Labels(cluster_N.astype(np.int16), names, "document")},
            source={
                "synthetic": True,
                "documents": [f"{names[cluster]}-{index}" for index, cluster in enumerate(cluster_N)],
                "floor": self._floor(centre_CD, map_CMD),
            },
            values=y_NM.astype(np.float32),
        )

    def _floor(self, centre_CD: np.ndarray, map_CMD: np.ndarray) -> dict[str, Any]:
        """The variance of y given x, mean over values and over a fresh sample of x: the noise's, and what is left open
        by where clusters overlap. `std_error` is the sample's."""
        config = self.config
        rng = np.random.default_rng([config.seed, _FLOOR])
        items = min(_FLOOR_ITEMS, max(1, 10**8 // (config.clusters * max(config.dims, config.outputs))))
        cluster_N = np.arange(items) % config.clusters
        x_ND = centre_CD[cluster_N] + rng.standard_normal((items, config.dims))
        log_NC = x_ND @ centre_CD.T - (centre_CD**2).sum(axis=1) / 2  # equal clusters: log posterior, up to a constant
        posterior_NC = np.exp(log_NC - log_NC.max(axis=1, keepdims=True))
        posterior_NC /= posterior_NC.sum(axis=1, keepdims=True)
        mean_NM, square_N = np.zeros((items, config.outputs)), np.zeros(items)
        for weight_N, map_MD in zip(posterior_NC.T, map_CMD, strict=True):
            y_NM = x_ND @ map_MD.T
            mean_NM += weight_N[:, None] * y_NM
            square_N += weight_N * (y_NM**2).mean(axis=1)
        open_N = np.maximum(square_N - (mean_NM**2).mean(axis=1), 0.0)
        return {
            "squared_error": config.noise**2 + float(open_N.mean()),
            "std_error": float(open_N.std() / np.sqrt(items)),
            "noise": config.noise**2,
        }


def _apart(rng: np.random.Generator, config: RegressionsConfig) -> np.ndarray:
    """float64 [C, D]: centres, each the one of several draws that is farthest from those before it."""
    centre_CD = np.empty((config.clusters, config.dims))
    for index in range(config.clusters):
        drawn_RD = rng.normal(scale=config.spread, size=(_DRAWS, config.dims))
        distance_RC = np.linalg.norm(drawn_RD[:, None] - centre_CD[:index], axis=2)
        centre_CD[index] = drawn_RD[distance_RC.min(axis=1, initial=np.inf).argmax()]
    return centre_CD


def _mapped(map_CMD: np.ndarray, cluster_N: np.ndarray, x_ND: np.ndarray) -> np.ndarray:
    """float64 [N, M]: each vector by the map of its cluster."""
    y_NM = np.empty((len(x_ND), map_CMD.shape[1]))
    for cluster, map_MD in enumerate(map_CMD):
        y_NM[cluster_N == cluster] = x_ND[cluster_N == cluster] @ map_MD.T
    return y_NM
