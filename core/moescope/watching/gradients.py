"""What the gradients say just before an optimizer step: the signals of the growth detector, watched and never acted on.

Norms and products stay on the device, one row per step, until an event is due. The detector judges every slot by
itself, so one instance serves all blocks. Shapes: L blocks, E expert slots of each, S = L * E, D numbers of one weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from moescope.expansion import DETECTORS
from moescope.expansion.base import Detector, Finding, View
from moescope.watching.models import Weights

DETECTOR = "mass"

_AT_ONCE = {"cpu": 2**18}
_AT_ONCE_ELSEWHERE = 2**26
"""Products that are held at once, by device: caches on a CPU, few launches on a GPU."""


class Gradients:
    """Sees every step of whichever torch optimizer holds the experts' weights, from `attach` to `detach`.

    drift: whether signals are computed; without, only the learning rate is read.
    lr:    of the experts' weights at the last step. seen: whether a gradient of theirs was ever seen.
    """

    def __init__(
        self,
        weights: Mapping[int, Weights],
        alive: Callable[[int], Tensor],
        on_step: Callable[[], None],
        *,
        drift: bool,
    ) -> None:
        self._weights, self._alive, self._on_step = weights, alive, on_step
        self._mine = {id(item.first_Egd) for item in weights.values()}
        first_Egd = next(iter(weights.values())).first_Egd
        self._shape, self._size = (len(weights), len(first_Egd)), first_Egd[0].numel()
        self._detector = _detector(len(weights) * len(first_Egd)) if drift else None
        self._holds: WeakKeyDictionary[Optimizer, tuple[int, dict[str, Any] | None]] = WeakKeyDictionary()
        self._now_4LE: Tensor | None = None
        self._kept: list[tuple[int, Tensor]] = []
        self._handle: RemovableHandle | None = None
        self.lr: float | None = None
        self.seen = False

    def attach(self) -> None:
        self._handle = register_optimizer_step_pre_hook(self._about_to_step)

    def detach(self) -> None:
        if self._handle is not None:
            self._handle.remove()

    def keep(self, step: int) -> None:
        """The step that is now done is number `step`, from 1."""
        if self._now_4LE is not None:
            self._kept.append((step, self._now_4LE))
            self._now_4LE = None

    def payloads(self, every: int) -> list[tuple[int, dict[str, Any]]]:
        """(step, payload) of the `drift` events of the steps kept since the last call: those on which something fired,
        the first, and every `every`-th. One transfer from the device."""
        kept, self._kept = self._kept, []
        if not kept or self._detector is None:
            return []
        all_N4LE = torch.stack([row_4LE for _, row_4LE in kept]).cpu().double()
        alive_LE = torch.stack([self._alive(layer) for layer in self._weights])
        told = []
        for (step, _), row_4LE in zip(kept, all_N4LE, strict=True):
            finding = self._detector.look(self._view(step, row_4LE, alive_LE))
            if bool(finding.fired_E.any()) or step == 1 or step % every == 0:
                signals = {**finding.signals, "router_grad_norm": row_4LE[3].flatten()}
                told.append((step, self._told(finding, signals, alive_LE)))
        return told

    def _view(self, step: int, row_4LE: Tensor, alive_LE: Tensor) -> View:
        norm_S, product_S, weight_S, _ = row_4LE.flatten(1)
        both_S = norm_S * weight_S
        return View(
            layer=next(iter(self._weights)),
            step=step - 1,
            alive_E=alive_LE.flatten(),
            norm_E=norm_S,
            cos_E=(product_S / both_S.where(both_S > 0, 1.0)).where(both_S > 0, 0.0),
            size=self._size,
            sent_E=(norm_S > 0).long(),  # no token, no gradient
            tokens=0,
            unreached=0,
            loss=math.nan,
        )

    def _told(self, finding: Finding, signals: Mapping[str, Tensor], alive_LE: Tensor) -> dict[str, Any]:
        fired_LE = finding.fired_E.view(self._shape)
        thresholds = {name: {"at": item.at, "fires": item.fires} for name, item in finding.thresholds.items()}
        layers = []
        for index, layer in enumerate(self._weights):
            alive_E = alive_LE[index]
            here = {name: value_S.view(self._shape)[index][alive_E].tolist() for name, value_S in signals.items()}
            layers.append(
                {
                    "layer": layer,
                    "experts": torch.nonzero(alive_E).flatten().tolist(),
                    "fired": fired_LE[index][alive_E].tolist(),
                    "chosen": None,
                    "signals": {name: [_plain(value) for value in values] for name, values in here.items()},
                    "thresholds": thresholds,
                    "note": "only watched",
                }
            )
        return {"detector": DETECTOR, "layers": layers}

    def _about_to_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        group = self._group(optimizer)
        if group is None:
            return
        self._on_step()
        self.lr = float(group["lr"]) if "lr" in group else None
        if self._detector is not None and any(item.first_Egd.grad is not None for item in self._weights.values()):
            self.seen = True
            rows = [_norms(item) for item in self._weights.values()]
            self._now_4LE = torch.stack([row_4E.to(rows[0].device) for row_4E in rows], dim=1)

    def _group(self, optimizer: Optimizer) -> dict[str, Any] | None:
        """The parameter group that holds the first of the experts' weights, if this optimizer has one."""
        size = sum(len(group["params"]) for group in optimizer.param_groups)
        known = self._holds.get(optimizer)
        if known is None or known[0] != size:
            mine = (g for g in optimizer.param_groups if any(id(weight) in self._mine for weight in g["params"]))
            known = self._holds[optimizer] = size, next(mine, None)
        return known[1]


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _detector(num_slots: int) -> Detector:
    kind = DETECTORS[DETECTOR]
    return kind(kind.Config(), num_slots)


@torch.no_grad()
def _norms(item: Weights) -> Tensor:
    """float32 [4, E]: norm of the gradient, its product with the weight, norm of the weight, norm of the gradient of
    the router's row (NaN where there is none). All 0 where there is no gradient."""
    weight_ED, grad = item.first_Egd.flatten(1), item.first_Egd.grad
    if grad is None:
        return torch.zeros((4, len(weight_ED)), device=weight_ED.device)
    grad_ED = grad.flatten(1)
    norm_E = torch.linalg.vector_norm(grad_ED, dim=1, dtype=torch.float32)
    weight_E = torch.linalg.vector_norm(weight_ED, dim=1, dtype=torch.float32)
    product_E = _dots(grad_ED, weight_ED.to(grad_ED.dtype))
    rows = None if item.rows_Ed is None else item.rows_Ed.grad
    if rows is None:
        row_E = torch.full_like(norm_E, torch.nan)
    else:
        row_E = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32).to(norm_E.device)
    return torch.stack([norm_E, product_E, weight_E, row_E])


def _dots(a_ED: Tensor, b_ED: Tensor) -> Tensor:
    """float32 [E], the dot products of rows. (As a batched matrix product it is ten times slower on a CPU.)"""
    rows = _AT_ONCE.get(a_ED.device.type, _AT_ONCE_ELSEWHERE) // max(a_ED.shape[1], 1)
    if rows <= 1:
        return torch.stack([torch.dot(a_D, b_D) for a_D, b_D in zip(a_ED, b_ED, strict=True)]).float()
    pairs = zip(torch.split(a_ED, rows), torch.split(b_ED, rows), strict=True)
    return torch.cat([(a * b).sum(dim=1, dtype=torch.float32) for a, b in pairs])
