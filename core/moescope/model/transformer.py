"""One pre-norm transformer over tokens, patches or vectors, with MoE in any subset of its blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moescope.config import parse
from moescope.errors import InputError
from moescope.model.batch import Batch, ModelOutput
from moescope.model.config import ModelConfig
from moescope.model.experts import Bank, ExpertBank
from moescope.model.layers import Attention, MoELayer, RMSNorm, SwiGLU, rotary_angles, sinusoids
from moescope.model.linear import LinearBank
from moescope.objectives.base import LayerRecord, Seen
from moescope.routers import ROUTERS
from moescope.routers.base import Place, RouterContext


def build_moe(config: ModelConfig, first: bool = True) -> MoELayer:
    """One MoE layer of a model, the first or a later one."""
    kind = ROUTERS[config.router]
    place = Place(first=first, vocab_size=config.vocab_size if config.input == "tokens" else None)
    router = kind(parse(kind.Config, config.router_config), config.d_model, config.num_slots, place)
    bank: Bank
    if config.expert == "swiglu":
        bank = ExpertBank(config.num_slots, config.d_model, config.d_expert)
    else:
        bank = LinearBank(config.num_slots, config.d_model, config.expert)
    width = config.num_shared_experts * config.d_expert
    shared = SwiGLU(config.d_model, width) if width else None
    return MoELayer(router, bank, shared, config.num_experts, shifts=config.max_experts is not None)


def build_norm(config: ModelConfig) -> nn.Module:
    return RMSNorm(config.d_model) if config.norm == "rms" else nn.Identity()


class Block(nn.Module):
    """x + attention(norm x), then x + experts or dense SwiGLU(norm x). Exactly one of `moe` and `mlp` is there."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        d_model = config.d_model
        self.attention = Attention(d_model, config.num_heads, config.causal) if config.num_heads else None
        self.attention_norm = build_norm(config) if config.num_heads else None
        self.norm = build_norm(config)
        sparse = layer in config.moe_indices
        self.moe = build_moe(config, first=layer == config.moe_indices[0]) if sparse else None
        self.mlp = None if sparse else SwiGLU(d_model, config.d_dense)

    def forward(
        self,
        x_BSd: Tensor,
        cos: Tensor,
        sin: Tensor,
        valid_BS: Tensor,
        context: Callable[..., RouterContext],
        previous: LayerRecord | None,
    ) -> tuple[Tensor, LayerRecord | None]:
        """The new residual stream, and what the MoE layer did where there is one."""
        if self.attention is not None and self.attention_norm is not None:
            x_BSd = x_BSd + self.attention(self.attention_norm(x_BSd), cos, sin, valid_BS)
        h_BSd = self.norm(x_BSd)
        if self.moe is None:
            assert self.mlp is not None
            return x_BSd + self.mlp(h_BSd), None
        known = context(alive_E=self.moe.alive_E, previous=None if previous is None else previous.routing)
        y_Td, record = self.moe(h_BSd.flatten(0, 1), known, previous)
        return x_BSd + y_Td.view_as(x_BSd), record


class Transformer(nn.Module):
    """The model. Equal `config` and `seed` give equal weights; with `seed` None the weights are left undrawn.

    Module paths: `blocks.{layer}.moe.router`, `.moe.bank`, `.moe.shared`, or `blocks.{layer}.mlp`.
    """

    def __init__(self, config: ModelConfig, seed: int | None = 0) -> None:
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):  # modules draw on construction; what counts is drawn in `reset`
            if config.input == "tokens":
                self.embed: nn.Embedding | nn.Linear = nn.Embedding(config.vocab_size, config.d_model)
            else:
                self.embed = nn.Linear(config.d_input, config.d_model)
            self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
            self.norm = build_norm(config)
            width = {"next_token": config.vocab_size, "class": config.num_classes, "values": config.num_values}[
                config.head
            ]
            tied = config.head == "next_token" and config.tie_embeddings
            self.head = None if tied else nn.Linear(config.d_model, width, bias=False)
        if seed is not None:
            self.reset(torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """Draw all weights: N(0, 1/fan_in), over sqrt(2 layers) into the residual; embedding and head N(0, 0.02²).

        An embedding that sinusoidal positions are added to is N(0, 1/d): multiplied by sqrt(d) it is of their size.
        """
        depth = math.sqrt(2 * self.config.num_layers)
        for name, weight in self.named_parameters():
            if ".router." in name:
                continue
            if weight.ndim == 1:
                weight.fill_(1.0 if name.endswith("norm.weight") else 0.0)
                continue
            ends = name in ("embed.weight", "head.weight") and not (name == "embed.weight" and self.config.d_input)
            std = 0.02 if ends and not (name == "embed.weight" and self._adds_positions) else weight.shape[-1] ** -0.5
            residual = name.endswith(("attention.out.weight", ".down", ".down.weight", ".bank.weight"))
            weight.normal_(0.0, std / depth if residual else std, generator=generator)
        for layer in self.moe.values():
            layer.router.reset(generator)

    @property
    def moe(self) -> dict[int, MoELayer]:
        """MoE layers by the index of their block, ascending."""
        return {index: block.moe for index, block in self._blocks() if block.moe is not None}

    def _blocks(self) -> Iterator[tuple[int, Block]]:
        return enumerate(cast(Iterable[Block], self.blocks))

    @property
    def causal_from(self) -> int:
        """First position of a sequence that sees no later one; a next-token loss counts from there on."""
        return max((layer.router.causal_from for layer in self.moe.values()), default=0)

    @property
    def eval_draws(self) -> int:
        """Forward passes that an evaluation averages over: more than one where the router is random."""
        return max((layer.router.eval_draws for layer in self.moe.values()), default=1)

    @contextmanager
    def keeping(self, seen: Iterable[Seen]) -> Iterator[None]:
        """Within, the records of a forward pass hold what objectives ask for (`Objective.needs`)."""
        layers, before = self.moe.values(), [layer.keeps for layer in self.moe.values()]
        try:
            for layer in layers:
                layer.keeps = frozenset(seen)
            yield
        finally:
            for layer, kept in zip(layers, before, strict=True):
                layer.keeps = kept

    def forward(self, batch: Batch, step: int = 0, num_steps: int | None = None) -> ModelOutput:
        """Logits, and one record per MoE layer. For routers with a schedule: optimizer steps done, and of the run."""
        size, seq = batch.valid.shape
        if seq > self.config.max_seq:
            raise InputError(f"{seq} positions are more than this model's max_seq = {self.config.max_seq}.")
        known = partial(
            RouterContext,
            batch=size,
            seq=seq,
            valid_T=batch.valid.flatten(),
            training=self.training,
            step=step,
            token_T=batch.inputs.flatten() if self.config.input == "tokens" else None,
            max_seq=self.config.max_seq,
            num_steps=num_steps,
            label_T=None if batch.label is None else batch.label.flatten(),
        )
        cos, sin = self._angles(batch)
        x_BSd = self._embedded(batch)
        records: list[LayerRecord] = []
        for index, block in self._blocks():
            previous = records[-1] if records else None
            x_BSd, record = block(x_BSd, cos, sin, batch.valid, partial(known, layer=index), previous)
            if record is not None:
                records.append(record)
        first = self.causal_from if self.config.head == "next_token" else 0
        return ModelOutput(self._logits(self.norm(x_BSd), batch.valid), tuple(records), first)

    @property
    def _adds_positions(self) -> bool:
        return self.config.position == "sinusoidal"

    def _embedded(self, batch: Batch) -> Tensor:
        """Token vectors [B, S, d]; with sinusoidal positions as in 1706.03762, sections 3.4 and 3.5."""
        tokens = self.config.input == "tokens"
        x_BSd: Tensor = self.embed(batch.inputs if tokens else batch.inputs.to(self.embed.weight.dtype))
        if not self._adds_positions:
            return x_BSd
        if tokens:
            x_BSd = x_BSd * math.sqrt(self.config.d_model)
        return x_BSd + sinusoids(_positions(batch), self.config.d_model).to(x_BSd.dtype)

    def _angles(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What attention turns its heads by: nothing where positions were added to the embedding."""
        position = _positions(batch)
        if self._adds_positions:
            position = torch.zeros_like(position)
        return rotary_angles(position, self.config.d_model // max(self.config.num_heads, 1), self.config.rope_base)

    def _logits(self, x_BSd: Tensor, valid_BS: Tensor) -> Tensor:
        if self.config.head != "next_token":
            valid_BS1 = valid_BS[..., None]
            pooled_Bd = x_BSd.where(valid_BS1, 0.0).sum(dim=1) / valid_BS1.sum(dim=1).clamp_min(1)
            x_BSd = pooled_Bd.to(x_BSd.dtype)
        weight = self.embed.weight if self.head is None else self.head.weight
        return F.linear(x_BSd, weight)


def _positions(batch: Batch) -> Tensor:
    """int64 [B, S], or [1, S] where all sequences count from 0."""
    if batch.position is not None:
        return batch.position
    return torch.arange(batch.valid.shape[1], device=batch.valid.device)[None]


def num_params(model: nn.Module) -> int:
    """Parameters, dead expert slots included."""
    return sum(weight.numel() for weight in model.parameters())


def active_params(model: Transformer, experts_per_token: float | None = None) -> int:
    """Parameters that one token uses: all but the experts it is not sent to.

    Where the router's k varies, give the measured `experts_per_token`; without it every alive expert counts.
    """
    total = num_params(model)
    for layer in model.moe.values():
        slots, alive = layer.alive_E.numel(), int(layer.alive_E.sum())
        per_expert = sum(layer.bank.get_parameter(name).numel() for name in layer.bank.per_expert) // slots
        used = layer.router.k if layer.router.k is not None else experts_per_token
        total -= round((slots - min(alive if used is None else used, alive)) * per_expert)
    return total
