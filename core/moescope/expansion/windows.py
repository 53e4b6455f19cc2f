"""Sliding windows over the last values of each expert slot, all slots at once, in float64."""

from __future__ import annotations

import torch
from torch import Tensor


class Windows:
    """The last `length` values of each of E slots. Oldest first; what is not filled yet is NaN."""

    def __init__(self, num_slots: int, length: int) -> None:
        self.value_EW = torch.full((num_slots, length), torch.nan, dtype=torch.float64)

    def push(self, value_E: Tensor, where_E: Tensor) -> None:
        """Append a value to the slots of the mask; the oldest one drops out."""
        moved_EW = torch.cat([self.value_EW[:, 1:], value_E[:, None]], dim=1)
        self.value_EW = torch.where(where_E[:, None], moved_EW, self.value_EW)

    def clear(self, slot: int) -> None:
        self.value_EW = self.value_EW.index_fill(0, torch.tensor([slot]), torch.nan)

    def count(self) -> Tensor:
        """int64 [E], values held."""
        return (~self.value_EW.isnan()).sum(dim=1)

    def total(self) -> Tensor:
        """float64 [E], 0 where nothing is held."""
        return self.value_EW.nansum(dim=1)

    def mean_std(self) -> tuple[Tensor, Tensor]:
        """Mean and unbiased standard deviation, float64 [E]; NaN with fewer than two values."""
        count_E = self.count()
        several_E = count_E >= 2
        mean_E = self.total() / count_E
        apart_EW = (self.value_EW - mean_E[:, None]).square()
        std_E = (apart_EW.nansum(dim=1) / (count_E - 1)).sqrt()
        return mean_E.where(several_E, torch.nan), std_E.where(several_E, torch.nan)
