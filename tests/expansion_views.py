"""Made-up layers for detectors: what one would be shown of random experts, step by step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moescope.expansion.base import TokenGradients, View

E, D, G = 5, 6, 4


def view(step: int = 0, norm_E: Tensor | None = None, **changes: Any) -> View:
    num_slots = E if norm_E is None else len(norm_E)
    plain: dict[str, Any] = {
        "layer": 0,
        "step": step,
        "alive_E": torch.ones(num_slots, dtype=torch.bool),
        "norm_E": torch.ones(num_slots, dtype=torch.float64) if norm_E is None else norm_E,
        "cos_E": torch.zeros(num_slots, dtype=torch.float64),
        "size": 400,
        "sent_E": torch.full((num_slots,), 10),
        "tokens": 40,
        "unreached": 0,
        "loss": 1.0,
    }
    return View(**{**plain, **changes})


def drawn(step: int, order_E: Tensor | None = None, seed: int = 0) -> View:
    """A random step of E experts, the last of them dead; expert i being what `order_E[i]` is without."""
    generator = torch.Generator().manual_seed(1000 * seed + step)
    order_E = torch.arange(E) if order_E is None else order_E
    norm_E = (1 + 0.02 * step) * torch.rand(E, generator=generator, dtype=torch.float64)
    sent_E = torch.randint(0, 30, (E,), generator=generator)
    alive_E = torch.arange(E) < E - 1
    lost_d = torch.randn(D, generator=generator)
    cos_E = 0.1 * torch.randn(E, generator=generator, dtype=torch.float64)
    return view(
        step,
        (norm_E * alive_E)[order_E],
        alive_E=alive_E[order_E],
        cos_E=cos_E[order_E],
        sent_E=(sent_E * alive_E)[order_E],
        unreached=3,
        loss=1.0 + 0.001 * float(torch.rand((), generator=generator)),
        unreached_mean=lambda: lost_d,
        nearest=lambda token_d: int(order_E.argsort()[1]),
        gradients=lambda expert, most, draw: gradients(int(order_E[expert]), step),
    )


def gradients(expert: int, step: int) -> TokenGradients:
    """Two kinds of tokens that pull an expert apart."""
    generator = torch.Generator().manual_seed(10_000 * expert + step)
    x_nd = torch.randn(200, D, generator=generator)
    return TokenGradients(x_nd=x_nd, u_ng=1 + 0.3 * torch.randn(200, G, generator=generator))
