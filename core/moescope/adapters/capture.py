"""Hooks on a foreign model: what its routers saw and said, and what its experts were called with.

Hooks stand at module paths and are keyed by block. Shapes: T rows, E experts, k experts per token, d model width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from moescope.adapters.architectures import Architecture


@dataclass
class Call:
    """One call of a router: its input, its output, and (indices, gates) as the experts got them right after."""

    input: Tensor
    output: Any
    used: tuple[Any, Any] | None = None


@dataclass(frozen=True)
class Decided:
    """A router's calls one after another. `used` is None where the experts were not called in the expected way."""

    inputs: tuple[Tensor, ...]
    logits_TE: Tensor
    gate_Tk: Tensor
    index_Tk: Tensor
    used: tuple[Tensor, Tensor] | None


@contextmanager
def hooked(module: nn.Module, row: Architecture, layers: Sequence[int]) -> Iterator[dict[int, list[Call]]]:
    """Calls of each block's router while the context is open; the hooks are gone after it."""
    calls: dict[int, list[Call]] = {layer: [] for layer in layers}

    def router(seen: list[Call], module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen.append(Call(args[0], output))

    def experts(seen: list[Call], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rest = [*args[1:], *kwargs.values()]
        if seen and len(rest) == 2:
            seen[-1].used = (rest[0], rest[1])

    handles = []
    try:
        for layer, seen in calls.items():
            gate = module.get_submodule(row.router_module.format(layer=layer))
            bank = module.get_submodule(row.experts_module.format(layer=layer))
            handles.append(gate.register_forward_hook(partial(router, seen)))
            handles.append(bank.register_forward_pre_hook(partial(experts, seen), with_kwargs=True))
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def decided(row: Architecture, calls: Sequence[Call], num_experts: int, k: int) -> Decided | None:
    """What the calls of one router say together; None where an output is not what `row.contract` promises."""
    inputs = tuple(call.input.reshape(-1, call.input.shape[-1]) for call in calls)
    read = CONTRACTS[row.contract]
    parts = [read(call.output, len(x), num_experts, k) for call, x in zip(calls, inputs, strict=True)]
    told = [part for part in parts if part is not None]
    if not told or len(told) != len(calls):
        return None
    logits_TE, gate_Tk, index_Tk = (_joined([part[i] for part in told]) for i in range(3))
    handed = [call.used for call in calls]
    fits = all(
        pair is not None and all(isinstance(x, Tensor) and x.shape == part[2].shape for x in pair)
        for pair, part in zip(handed, told, strict=True)
    )
    used = None
    if fits:
        used = (_joined([pair[0] for pair in handed if pair]), _joined([pair[1] for pair in handed if pair]))
    return Decided(inputs, logits_TE, gate_Tk, index_Tk, used)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def v5(output: Any, rows: int, num_experts: int, k: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """transformers 5: (logits [T, E], gates [T, k], indices [T, k]), told by shape and dtype."""
    if not isinstance(output, tuple) or len(output) != 3 or not all(isinstance(part, Tensor) for part in output):
        return None
    logits, gates, indices = output
    shapes = [tuple(part.shape) for part in output]
    floats = logits.is_floating_point() and gates.is_floating_point() and not indices.is_floating_point()
    return (logits, gates, indices) if floats and shapes == [(rows, num_experts), (rows, k), (rows, k)] else None


Contract = Callable[[Any, int, int, int], tuple[Tensor, Tensor, Tensor] | None]

CONTRACTS: Final[dict[str, Contract]] = {"v5": v5}
"""Name (as in the table of architectures) to reader: (output, T, E, k) -> (logits, gates, indices), or None."""
