"""The redundancy loss of MASS: a duplicated expert should go its own way."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moescope.config import Config
from moescope.objectives.base import LayerRecord, Objective, Over
from moescope.objectives.parts import unit, wide


@dataclass(frozen=True, kw_only=True)
class RedundancyConfig(Config):
    """Nothing to choose."""


class Redundancy(Objective):
    """Mean over duplicated pairs (both alive) of cos² between their router rows; 0 without pairs or without rows.

    Its gradient is exactly 0 at a perfect copy: something else has to part the two first.
    """

    Config = RedundancyConfig
    rule = "mean over duplicated pairs of cos² of their router rows"
    source = "MASS 2512.19765"
    over: Over = "weights"
    moves = "cosine between the router rows of duplicated experts: towards 0"

    def __call__(self, record: LayerRecord) -> Tensor:
        if record.rows_Ed is None or not record.pairs:
            return record.routing.probs_TE.new_zeros(())
        pair_N2 = torch.tensor(record.pairs, device=record.rows_Ed.device)
        alive_N = record.alive_E[pair_N2].all(dim=1)
        unit_N2d = unit(wide(record.rows_Ed)[pair_N2])
        apart_N = (unit_N2d[:, 0] - unit_N2d[:, 1]).square().sum(dim=-1)  # for a·b: exact at a = b
        cos_N = (unit_N2d.detach().square().sum(dim=(1, 2)) - apart_N) / 2
        square_N = cos_N.square().where(alive_N, 0.0)
        return square_N.sum() / alive_N.sum().clamp_min(1)
