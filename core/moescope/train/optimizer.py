"""AdamW over parameter groups: what decays and what does not."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moescope.model import Transformer
from moescope.train.config import OptimConfig


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
    alive slots only, just before torch's step.
    """

    def __init__(self, model: Transformer, config: OptimConfig) -> None:
        self.config = config
        self.parameters = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.slots = _partly_dead(model)
        wanted = decays(model)
        own = [weight for name, weight in self.parameters.items() if wanted[name] and name not in self.slots]
        rest = [weight for name, weight in self.parameters.items() if not wanted[name] or name in self.slots]
        self.masked = [(self.parameters[name], alive) for name, alive in self.slots.items() if wanted[name]]
        groups = [{"params": own, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        self.adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            fused=True,
        )

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


def _partly_dead(model: Transformer) -> dict[str, Tensor]:
    """Parameters of layers with dead slots that hold one row or matrix per slot, with the layer's alive mask."""
    found = {}
    for index, layer in model.moe.items():
        if bool(layer.alive_E.all()):
            continue
        per_slot = {f"router.{name}" for name in layer.router.per_expert} | {
            f"bank.{name}" for name in layer.bank.per_expert
        }
        for name, weight in layer.named_parameters():
            if name in per_slot and weight.requires_grad:
                found[f"blocks.{index}.moe.{name}"] = layer.alive_E
    return found
