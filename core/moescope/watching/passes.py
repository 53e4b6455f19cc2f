"""Hooks that see a model's forward passes in training: who went where, how many tokens, and the model's own loss.

A pass counts where the model is in training mode and gradients are on. What gradient checkpointing computes again in
the backward pass does not count: a block that is run again is not inside a pass, and a whole model that is run again is
inside a backward pass.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from moescope.adapters.capture import CONTRACTS
from moescope.watching.counting import Tally
from moescope.watching.models import Subject


class Passes:
    """The forward passes of the step under way; hooks stand from `attach` to `detach`.

    counting: whether routers are counted in this step. seen: passes so far.
    """

    def __init__(self, subject: Subject, tally: Tally) -> None:
        self._subject, self._tally = subject, tally
        self._names = list(inspect.signature(subject.body.forward).parameters)
        self._metas = {meta.layer: meta for meta in subject.opened.layers}
        self._handles: list[RemovableHandle] = []
        self._inside = False
        self._valid_T: Tensor | None = None
        self._losses: list[tuple[Tensor, Tensor | None, bool]] = []
        """Per pass: the loss, the balance loss in it, and whether it is a share of the step's loss."""
        self._counted: Tensor | int = 0
        self._rows = 0
        self.counting = False
        self.seen = 0

    def attach(self) -> None:
        subject, handles = self._subject, self._handles
        handles.append(subject.body.register_forward_pre_hook(self._begin, with_kwargs=True))
        handles.append(subject.body.register_forward_hook(self._end, always_call=True))
        if subject.row is not None:
            for layer, router in subject.routers.items():
                handles.append(router.register_forward_hook(partial(self._routed, layer)))
        if subject.root is not subject.body:
            handles.append(subject.root.register_forward_hook(self._lost, with_kwargs=True))

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def clear(self) -> None:
        """A new step begins."""
        self._losses.clear()
        self._tally.clear()
        self._inside = False
        self.seen = 0

    @property
    def tokens(self) -> int:
        """Positions seen by this rank since `attach`, padding left out; read from the device."""
        return self._rows + int(self._counted)

    @property
    def shares(self) -> bool:
        """Whether the losses of this step's passes were to be summed, not averaged."""
        return bool(self._losses) and all(share for _, _, share in self._losses)

    def losses(self) -> tuple[Tensor, Tensor | None] | None:
        """The step's loss as the model returned it, over its passes, without the balance loss, and that loss, weighted;
        None where it returned none."""
        if not self._losses:
            return None
        mains, balances, _ = zip(*self._losses, strict=True)
        scale = 1.0 if self.shares else 1.0 / len(mains)
        told = [balance for balance in balances if balance is not None]
        balance = torch.stack(told).sum() * scale if told else None
        total = torch.stack(mains).sum() * scale
        return (total if balance is None else total - balance), balance

    # Hooks

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._inside = module.training and torch.is_grad_enabled() and not _in_backward()
        if not self._inside:
            return
        self.seen += 1
        if self._subject.row is None:
            self._counted = self._counted + (args[0] if args else kwargs["batch"]).valid.sum()
            return
        given = dict(zip(self._names, args, strict=False)) | dict(kwargs)
        inputs = given.get("input_ids")
        inputs = given.get("inputs_embeds") if inputs is None else inputs
        self._valid_T = None
        if isinstance(inputs, Tensor):
            rows, length = inputs.shape[:2]
            self._valid_T = _valid(given.get("attention_mask"), rows, length)
            if self._valid_T is None:
                self._rows += rows * length
            else:
                self._counted = self._counted + self._valid_T.sum()

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._inside and self.counting and self._subject.row is None and output is not None:
            for record in output.records:
                self._tally.add_record(record)
        self._inside = False
        self._valid_T = None

    def _routed(self, layer: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not (self._inside and self.counting) or self._subject.row is None:
            return
        meta, rows = self._metas[layer], args[0].numel() // args[0].shape[-1]
        found = CONTRACTS[self._subject.row.contract](output, rows, meta.num_experts, meta.k or 0)
        if found is not None:
            self._tally.add(layer, found[0].detach(), found[2], self._valid_T)

    def _lost(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        loss = getattr(output, "loss", None)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad or _in_backward():
            return
        balance, weight = getattr(output, "aux_loss", None), getattr(module, "router_aux_loss_coef", None)
        if isinstance(balance, Tensor) and isinstance(weight, int | float):
            balance = (balance.detach() * weight).to(loss.device)
        else:
            balance = None
        self._losses.append((loss.detach(), balance, kwargs.get("num_items_in_batch") is not None))


def _valid(mask: Any, rows: int, length: int) -> Tensor | None:
    """bool [rows * length] of a mask over positions, earlier ones of a cache left out; None where there is none."""
    if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.shape[0] != rows or mask.shape[1] < length:
        return None
    return mask[:, -length:].flatten() != 0


def _in_backward() -> bool:
    return bool(torch._C._current_graph_task_id() != -1)
