"""AdamW over parameter groups: what decays and what does not, and what becomes of a slot that is born or dies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from moescope.model import Transformer
from moescope.train.config import OptimConfig

_MOMENTS = ("exp_avg", "exp_avg_sq")


def decays(model: Transformer) -> dict[str, bool]:
    """For each learned parameter by name, whether weight decay applies: not to norms, biases and token embeddings."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return {
        name: weight.ndim >= 2 and id(weight) not in embeddings
        for name, weight in model.named_parameters()
        if weight.requires_grad
    }


class Optimizer:
    """AdamW (Loshchilov & Hutter, 1711.05101, Algorithm 2) whose decay leaves dead expert slots alone.

    Where all slots of a layer are alive torch decays them with the rest; else their tensors are decayed here, in the
    alive slots only, just before torch's step. Dead slots get no gradient and their moments are zero, so that AdamW
    does not move them either.
    """

    def __init__(self, model: Transformer, config: OptimConfig) -> None:
        self.model, self.config = model, config
        self.parameters = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.decays = decays(model)
        self.adamw = torch.optim.AdamW(
            [{"params": list(self.parameters.values()), "weight_decay": config.weight_decay}],
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            fused=True,
        )
        self.adamw.add_param_group({"params": [], "weight_decay": 0.0})
        self.masks_changed()

    def masks_changed(self) -> None:
        """Told when a layer's `alive_E` became another: who decays by whom follows from the masks as they are now."""
        slots = _partly_dead(self.model)
        self.masked = [(self.parameters[name], alive) for name, alive in slots.items() if self.decays[name]]
        whole, rest = self.adamw.param_groups
        own = {name for name in self.parameters if self.decays[name] and name not in slots}
        whole["params"] = [weight for name, weight in self.parameters.items() if name in own]
        rest["params"] = [weight for name, weight in self.parameters.items() if name not in own]

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One step at rate `lr`; gradients are dropped after it."""
        for group in self.adamw.param_groups:
            group["lr"] = lr
        for weight, alive_E in self.masked:
            if weight.grad is None:  # as torch has it: what gets no gradient does not decay
                continue
            keep_E = 1.0 - lr * self.config.weight_decay * alive_E.to(weight.dtype)
            weight.mul_(keep_E.view(-1, *[1] * (weight.ndim - 1)))
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)

    @torch.no_grad()
    def copy_slot(self, layer: int, parent: int, child: int, moments: Literal["zero", "copy"]) -> None:
        """A slot came alive as a copy of another: its moments become zero, or its parent's."""
        for _, moment in self._moments(layer):
            moment[child] = moment[parent] if moments == "copy" else 0

    @torch.no_grad()
    def clear_slot(self, layer: int, slot: int) -> None:
        """A slot died: its moments become zero."""
        for _, moment in self._moments(layer):
            moment[slot] = 0

    def read_slot(self, layer: int, slot: int) -> dict[str, Tensor]:
        """A copy of the moments of one slot; nothing before the first step."""
        return {name: moment[slot].clone() for name, moment in self._moments(layer)}

    @torch.no_grad()
    def write_slot(self, layer: int, slot: int, kept: Mapping[str, Tensor]) -> None:
        """Put back what `read_slot` gave; moments that are not in it become zero."""
        for name, moment in self._moments(layer):
            moment[slot] = kept[name].to(moment.device) if name in kept else 0

    def _moments(self, layer: int) -> Iterator[tuple[str, Tensor]]:
        """The moments with one row per slot, by `{kind}.{parameter of the layer}`."""
        for name, full in _per_slot(self.model, layer).items():
            state = self.adamw.state.get(self.parameters[full], {})
            for kind in _MOMENTS:
                if kind in state:
                    yield f"{kind}.{name}", state[kind]

    def state(self) -> dict[str, Tensor]:
        """Moments and step counts by `{kind}.{parameter}`, on the CPU."""
        return {
            f"{kind}.{name}": value.detach().cpu().contiguous()
            for name, weight in self.parameters.items()
            for kind, value in self.adamw.state.get(weight, {}).items()
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` gave. Raises `KeyError` for a parameter that is not there."""
        for full, value in state.items():
            kind, _, name = full.partition(".")
            weight = self.parameters[name]
            where = "cpu" if kind == "step" and weight.device.type == "cpu" else weight.device
            self.adamw.state[weight][kind] = value.to(where, copy=True)


def _per_slot(model: Transformer, index: int) -> dict[str, str]:
    """Learned parameters of a layer that hold one row or matrix per slot: name in the layer, and in the model."""
    layer = model.moe[index]
    wanted = {f"router.{name}" for name in layer.router.per_expert} | {f"bank.{name}" for name in layer.bank.per_expert}
    learned = {name for name, weight in layer.named_parameters() if weight.requires_grad}
    return {name: f"blocks.{index}.moe.{name}" for name in sorted(wanted & learned)}


def _partly_dead(model: Transformer) -> dict[str, Tensor]:
    """Parameters of layers with dead slots that hold one row or matrix per slot, with the layer's alive mask."""
    return {
        full: layer.alive_E
        for index, layer in model.moe.items()
        if not bool(layer.alive_E.all())
        for full in _per_slot(model, index).values()
    }
