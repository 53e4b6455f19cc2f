"""Coverage, as in DynMoE: an expert for the tokens that reach none, and none that no token reaches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from moescope.config import Config, doc
from moescope.expansion.base import Detector, Finding, State, Threshold, View


@dataclass(frozen=True, kw_only=True)
class CoverageConfig(Config):
    every: int = field(default=25, metadata=doc("steps that are counted before each decision"))
    share: float = field(
        default=0.0, metadata=doc("share of the counted tokens above which unreached ones get an expert; 0: any token")
    )
    drop: bool = field(default=True, metadata=doc("whether experts that no counted token reached are removed"))

    def __post_init__(self) -> None:
        self.require(self.every >= 1, "every", "at least 1.")
        self.require(0 <= self.share < 1, "share", "it must lie in [0, 1).")


class Coverage(Detector):
    """Over `every` steps: tokens for which no expert was wanted, and tokens that each expert got. Then both decide.

    If there were unreached tokens, one expert is added whose router row points along their mean; it starts as a copy
    of the expert whose row lies nearest to that mean, which is where evaluation sends such tokens. Experts that got no
    token are removed, but for the one that is copied. Where every token reaches an expert, as under top-k, nothing is
    ever added.
    """

    Config = CoverageConfig
    config: CoverageConfig
    rule = "adds an expert for the mean of the tokens that reached none, drops experts that no token reached"
    source = "DynMoE 2405.14297, section 3.2"
    departs = (
        "the new expert's weights are those of its nearest neighbour, where DynMoE leaves the expert as it was drawn; "
        "a single expert is never dropped"
    )
    why = "coverage"
    drops = True

    def __init__(self, config: CoverageConfig, num_slots: int, seed: int = 0) -> None:
        super().__init__(config, num_slots, seed)
        self._start_again()

    def _start_again(self) -> None:
        self.steps, self.unreached, self.tokens = torch.zeros(3, dtype=torch.int64)
        self.got_E = torch.zeros(self.num_slots, dtype=torch.int64)
        self.sum_d = torch.zeros(0, dtype=torch.float64)

    def look(self, view: View) -> Finding:
        self.steps, self.got_E = self.steps + 1, self.got_E + view.sent_E
        self.tokens, self.unreached = self.tokens + view.tokens, self.unreached + view.unreached
        mean_d = view.unreached_mean()
        if mean_d is not None:
            added_d = mean_d.double().cpu() * view.unreached
            self.sum_d = added_d if not len(self.sum_d) else self.sum_d + added_d
        share = int(self.unreached) / max(int(self.tokens), 1)
        share_E = torch.full(view.alive_E.shape, share, dtype=torch.float64)
        got_E, fired_E = self.got_E.double(), torch.zeros_like(view.alive_E)
        chosen, row_d, drop = None, None, ()
        if self.steps >= self.config.every:
            if share > self.config.share and len(self.sum_d):
                row_d = (self.sum_d / self.unreached).float()
                chosen = view.nearest(row_d)
            if chosen is not None:
                fired_E[chosen] = True
            if self.config.drop:
                never_E = view.alive_E & (self.got_E == 0)
                drop = tuple(slot for slot in never_E.nonzero()[:, 0].tolist() if slot != chosen)
            self._start_again()
        return Finding(
            signals={"unreached": share_E, "tokens": got_E},
            thresholds={"unreached": Threshold(at=self.config.share, fires="above")},
            fired_E=fired_E,
            chosen=chosen,
            drop=drop,
            row_d=row_d if chosen is not None else None,
        )

    def grown(self, parent: int, child: int) -> None:
        """Counts of a set of experts that is no more say nothing."""
        self._start_again()

    def retired(self, slot: int) -> None:
        self._start_again()

    def state(self) -> State:
        counts = {"steps": self.steps, "unreached": self.unreached, "tokens": self.tokens}
        return {**counts, "got": self.got_E, "sum": self.sum_d}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.steps, self.unreached, self.tokens = state["steps"], state["unreached"], state["tokens"]
        self.got_E, self.sum_d = state["got"], state["sum"]
