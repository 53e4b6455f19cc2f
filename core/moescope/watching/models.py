"""What a user's model is: which module routes where, or one sentence that says why it cannot be watched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from tokenizers import Tokenizer
from torch import Tensor, nn

from moescope.adapters.architectures import ARCHITECTURES, SPARSE, Architecture, count
from moescope.adapters.card import Card
from moescope.adapters.foreign import ForeignModel
from moescope.adapters.inspection import MAX_CONTEXT, renormalised
from moescope.adapters.model import OpenModel
from moescope.adapters.ours import TransformerModel, card_of
from moescope.errors import InputError
from moescope.files import shown
from moescope.model import Transformer, num_params
from moescope.trace.schema import LayerMeta

_NAMES: Final = {"bfloat16": "BF16", "float16": "F16", "float64": "F64"}


@dataclass(frozen=True, kw_only=True)
class Weights:
    """One block's weights whose gradients tell of drift. first_Egd: the experts' first linear weight; rows_Ed: the
    router's rows, None where it has none."""

    first_Egd: nn.Parameter
    rows_Ed: nn.Parameter | None


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model that is watched.

    opened:  the same as an opened checkpoint; snapshots go through it.
    root:    the module whose output may carry `.loss`. body: called once per forward pass, with the padding mask.
    routers: block to its router. weights: block to what drift is read from.
    row:     how the family is laid out; None for a model of ours.
    """

    opened: OpenModel
    root: nn.Module
    body: nn.Module
    routers: Mapping[int, nn.Module]
    weights: Mapping[int, Weights]
    row: Architecture | None

    @property
    def head(self) -> str | None:
        """What the loss is of, in the words of a run's configuration."""
        if isinstance(self.root, Transformer):
            return self.root.config.head
        return "next_token" if type(self.root).__name__.endswith("ForCausalLM") else None

    @property
    def active_params(self) -> int | None:
        """Parameters that one token uses; None where the number of experts per token varies."""
        metas = {meta.layer: meta for meta in self.opened.layers}
        if any(meta.k is None for meta in metas.values()):
            return None
        total = self.opened.card.params
        for layer, bank in self._banks().items():
            experts, k = metas[layer].num_experts, metas[layer].k or 0
            total -= num_params(bank) // experts * (experts - k)
        return total

    def _banks(self) -> dict[int, nn.Module]:
        module = self.opened.module
        if isinstance(module, Transformer):
            return {layer: moe.bank for layer, moe in module.moe.items()}
        assert self.row is not None
        return {layer: module.get_submodule(self.row.experts_module.format(layer=layer)) for layer in self.routers}


def subject_of(model: nn.Module, name: str, tokenizer: Tokenizer | None) -> Subject:
    """What there is to watch in `model`, as it is or in DistributedDataParallel. Raises `InputError`."""
    if not isinstance(model, nn.Module):
        raise InputError(f"watch takes the model, a torch.nn.Module, and got {type(model).__name__}.")
    _refuse_wrapped(model)
    for module in model.modules():
        if isinstance(module, Transformer):
            return _ours(module, name, tokenizer)
        row = ARCHITECTURES.get(str(getattr(getattr(module, "config", None), "model_type", "")))
        if row is not None:
            return _foreign(module, row, name, tokenizer)
    kind = getattr(getattr(model, "config", None), "model_type", None) or type(model).__name__
    known = ", ".join(ARCHITECTURES)
    raise InputError(f"{shown(kind)} is no architecture of the table; known are {known} and moescope's own models.")


def _refuse_wrapped(model: nn.Module) -> None:
    for module in model.modules():
        kind = type(module).__name__
        if hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
            why = "hooks in it would be compiled too or never run; watch and train it uncompiled"
            raise InputError(f"The model is compiled (torch.compile): {why}.")
        if kind == "DataParallel":
            raise InputError("The model is in DataParallel, whose copies cannot be watched; start one process per GPU.")
        if kind == "FullyShardedDataParallel":
            raise InputError(_sharded("FullyShardedDataParallel"))
    for weight in model.parameters():
        if hasattr(weight, "device_mesh") or hasattr(weight, "ds_id"):
            raise InputError(_sharded(type(weight).__name__ if hasattr(weight, "device_mesh") else "ZeRO stage 3"))


def _sharded(how: str) -> str:
    return f"The model's weights are sharded over processes ({how}); only whole models can be watched."


def _ours(model: Transformer, name: str, tokenizer: Tokenizer | None) -> Subject:
    if not model.moe:
        raise InputError("The model has no block with experts.")
    card = card_of(model, name, tokenizer="none" if tokenizer is None else "tokenizer.json")
    return Subject(
        opened=TransformerModel(model, card, tokenizer),
        root=model,
        body=model,
        routers={layer: moe.router for layer, moe in model.moe.items()},
        weights={
            layer: Weights(first_Egd=moe.bank.get_parameter(moe.bank.first), rows_Ed=None)
            for layer, moe in model.moe.items()
        },
        row=None,
    )


def _foreign(module: nn.Module, row: Architecture, name: str, tokenizer: Tokenizer | None) -> Subject:
    plain: Any = module.config
    config: Mapping[str, Any] = plain.to_dict()
    prefix, _, rest = row.router_module.partition(".")
    body = getattr(module, prefix, None)
    if not isinstance(body, nn.Module):  # the model without its head
        body = module
        row = replace(row, router_module=rest, experts_module=row.experts_module.removeprefix(f"{prefix}."))
    num_layers = count(config, (row.layers_key,), "number of blocks")
    num_experts = count(config, row.experts_keys, "number of experts")
    d_model = count(config, (row.hidden_key,), "width")
    k = count(config, row.k_keys, "number of experts per token")
    blocks = sorted(SPARSE[row.sparse](config, num_layers))
    if not blocks:
        raise InputError("The model has no block with experts.")
    routers, weights = {}, {}
    for layer in blocks:
        routers[layer], weights[layer] = _block(module, row, layer, (num_experts, d_model))
    first = next(module.parameters())
    card = Card(
        name=name,
        format="transformers",
        family=row.model_type,
        kind="text",
        params=num_params(module),
        dtype=_NAMES.get(str(first.dtype).removeprefix("torch."), "F32"),
        d_model=d_model,
        num_layers=num_layers,
        layers=tuple(
            LayerMeta(
                layer=layer,
                path=row.router_module.format(layer=layer),
                router=row.rule + (", renormalised" if renormalised(row, config) else ""),
                num_experts=num_experts,
                k=k,
            )
            for layer in blocks
        ),
        max_seq=min(count(config, (row.context_key,), "longest sequence"), MAX_CONTEXT),
        vocab_size=count(config, (row.vocab_key,), "size of the vocabulary"),
        tokenizer="none" if tokenizer is None else "tokenizer.json",
    )
    opened = ForeignModel(module, row, card, tokenizer)
    return Subject(opened=opened, root=module, body=body, routers=routers, weights=weights, row=row)


def _block(module: nn.Module, row: Architecture, layer: int, shape: tuple[int, int]) -> tuple[nn.Module, Weights]:
    """A block's router and weights, where they are what the table says."""
    paths = [path.format(layer=layer) for path in (row.router_module, row.experts_module)]
    try:
        router, bank = (module.get_submodule(path) for path in paths)
    except AttributeError:
        raise InputError(_unlike(row, f"there is no {' and '.join(paths)}")) from None
    rows = getattr(router, "weight", None)
    if not isinstance(rows, Tensor) or tuple(rows.shape) != shape:
        raise InputError(_unlike(row, f"{paths[0]} has no weight of shape {list(shape)}"))
    stacked = [
        weight
        for part, weight in bank.named_parameters(recurse=False)
        if row.expert_shapes.get(part, ("",))[0] == "E" and weight.shape[0] == shape[0]
    ]
    if not stacked:
        raise InputError(_unlike(row, f"{paths[1]} does not hold its experts in one tensor"))
    return router, Weights(first_Egd=stacked[0], rows_Ed=rows if isinstance(rows, nn.Parameter) else None)


def _unlike(row: Architecture, fault: str) -> str:
    return f"The model is not laid out as the table states for {row.title}: {fault}; transformers 5 builds it so."
