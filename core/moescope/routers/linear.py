"""Base of routers whose logits are one linear map of the token vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moescope.config import Config as BaseConfig
from moescope.routers.base import Place, Router, RouterContext
from moescope.routers.select import only_alive


class LinearRouter(Router):
    """z = W h with one row of W [E, d] per expert slot, drawn from N(0, 0.02²); no bias.

    Where the class does not learn, W is a buffer: saved, but neither trained nor decayed.
    """

    weight: Tensor
    init_std = 0.02
    per_expert: tuple[str, ...] = ("weight",)
    grows: bool = True
    shifts: bool = True

    def __init__(self, config: BaseConfig, d_model: int, num_experts: int, place: Place | None = None) -> None:
        super().__init__(config, d_model, num_experts, place)
        weight = torch.empty(num_experts, d_model)
        if type(self).learns:
            self.weight = nn.Parameter(weight)
        else:
            self.register_buffer("weight", weight)
        self.reset()

    @property
    def rows_Ed(self) -> Tensor | None:
        return self.weight

    @torch.no_grad()
    def reset(self, generator: torch.Generator | None = None) -> None:
        self.weight.normal_(0.0, self.init_std, generator=generator)

    def logits(self, h_Td: Tensor, context: RouterContext) -> Tensor:
        """float32 [T, E], also under autocast; -inf and no gradient at dead slots."""
        with torch.autocast(h_Td.device.type, enabled=False):
            logits_TE = F.linear(h_Td.float(), self.weight.float())
            return only_alive(self._shifted(logits_TE, context), context.alive_E)
