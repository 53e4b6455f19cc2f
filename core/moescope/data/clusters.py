"""Made-up vectors: a Gaussian mixture whose clusters are tight along different features."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from moescope.config import Config, doc
from moescope.data.base import Labels, TokenSet, VectorCorpus


@dataclass(frozen=True, kw_only=True)
class ClustersConfig(Config):
    """Size and shape of the mixture."""

    tokens: int = field(default=8000, metadata=doc("vectors in all, spread evenly over the clusters"))
    clusters: int = field(default=8, metadata=doc("number of clusters, which are also the classes"))
    dims: int = field(default=16, metadata=doc("features of a vector"))
    tight: float = field(default=0.25, metadata=doc("share of the features along which a cluster is tight"))
    tight_std: float = field(default=0.1, metadata=doc("standard deviation along a cluster's tight features"))
    loose_std: float = field(default=1.0, metadata=doc("standard deviation along its other features"))
    spread: float = field(default=1.0, metadata=doc("standard deviation of the clusters' centres, along every feature"))
    group: int = field(default=1, metadata=doc("vectors per document; all of one document are of one cluster"))
    seed: int = field(default=0, metadata=doc("of centres, tight features and vectors"))

    def __post_init__(self) -> None:
        self.require(2 <= self.clusters <= 10_000, "clusters", "must lie between 2 and 10,000")
        self.require(1 <= self.dims <= 10_000, "dims", "must lie between 1 and 10,000")
        self.require(self.group >= 1, "group", "must be at least 1")
        self.require(
            self.clusters * self.group <= self.tokens, "tokens", "must give each cluster at least one document"
        )
        self.require(self.tokens * self.dims <= 10**9, "tokens", "tokens times dims must be at most 1e9")
        self.require(0 < self.tight <= 1, "tight", "must lie in (0, 1]")
        self.require(0 < self.tight_std <= self.loose_std, "tight_std", "must be positive and at most loose_std")
        self.require(self.spread >= 0, "spread", "must not be negative")
        self.require(self.seed >= 0, "seed", "must not be negative")


class ClustersCorpus(VectorCorpus):
    """Cluster c: normal around its own centre, with `tight_std` along its own random features, `loose_std` elsewhere.

    Made for routers that scale features by tightness: with centres as close as `loose_std`, only the tight features
    tell the clusters apart, and they differ from cluster to cluster. The label `cluster` belongs to documents, and is
    the `target`.
    """

    Config = ClustersConfig
    kind = "vectors"
    synthetic = True
    description = "Synthetic: a Gaussian mixture whose clusters are tight along different features"

    config: ClustersConfig

    def token_set(self) -> TokenSet:
        config = self.config
        rng = np.random.default_rng(config.seed)
        centre_CD = rng.normal(scale=config.spread, size=(config.clusters, config.dims))
        tight_CD = self._tight_features(rng)
        num_docs = config.tokens // config.group
        target = rng.permutation(np.arange(num_docs) % config.clusters)
        cluster_T = np.repeat(target, config.group)
        std_CD = np.where(tight_CD, config.tight_std, config.loose_std)
        noise_TD = rng.standard_normal((len(cluster_T), config.dims))
        names = tuple(f"c{index}" for index in range(config.clusters))
        return TokenSet(
            kind="vectors",
            inputs=(centre_CD[cluster_T] + noise_TD * std_CD[cluster_T]).astype(np.float32),
            doc=np.repeat(np.arange(num_docs, dtype=np.int32), config.group),
            labels={"cluster": Labels(cluster_T.astype(np.int16), names, "document")},
            source={
                "synthetic": True,
                "documents": [f"{names[cluster]}-{index}" for index, cluster in enumerate(target)],
                "tight_features": [np.flatnonzero(row).tolist() for row in tight_CD],
            },
            target=target.astype(np.int64),
        )

    def _tight_features(self, rng: np.random.Generator) -> np.ndarray:
        """bool [clusters, dims]: for each cluster its tight features, as evenly used over the clusters as can be."""
        config = self.config
        each = max(1, round(config.tight * config.dims))
        tight = np.zeros((config.clusters, config.dims), dtype=bool)
        used = np.zeros(config.dims)
        for row in tight:
            chosen = np.argsort(used + rng.random(config.dims), kind="stable")[:each]
            row[chosen] = True
            used[chosen] += 1
        return tight
