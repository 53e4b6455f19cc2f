"""What a MoE layer saw and did, and the auxiliary losses that are pure functions of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from moescope.config import Config as BaseConfig
from moescope.routers.base import Routing


@dataclass(frozen=True)
class LayerRecord:
    """One MoE layer's part of one forward pass.

    layer:     index of the block in the model (dense blocks count).
    routing:   the router's decision over T tokens.
    alive_E:   bool, which expert slots exist.
    input_Td:  router input (what is routed), in the model's dtype.
    """

    layer: int
    routing: Routing
    alive_E: Tensor
    input_Td: Tensor


class Objective(ABC):
    """An auxiliary loss of one layer. Losses are summed over layers by the trainer, never pooled across them."""

    Config: ClassVar[type[BaseConfig]]
    rule: ClassVar[str]
    source: ClassVar[str]

    def __init__(self, config: BaseConfig) -> None:
        self.config = config

    @abstractmethod
    def __call__(self, record: LayerRecord) -> Tensor:
        """Scalar float32 loss of one layer, before its coefficient. Padding rows never count."""
