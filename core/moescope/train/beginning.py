"""What a run begins with: device, model, the batches that it trains on, the batches that it is evaluated on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from moescope.data.base import TokenSet
from moescope.model import ModelConfig, Transformer
from moescope.train.arrivals import stages
from moescope.train.config import RunConfig
from moescope.train.prepare import Prepared
from moescope.train.sampling import Arriving, Batches, Documents, Held, Windows

if TYPE_CHECKING:
    from accelerate import Accelerator


def new_model(config: RunConfig, data: Prepared) -> Transformer:
    """The model of a new run, in training mode; its routers have been told how frequent each token is."""
    model = Transformer(data.model, seed=config.seed).train()
    if data.train.kind == "text":
        count_V = torch.bincount(torch.from_numpy(data.train.inputs).long(), minlength=data.model.vocab_size)
        for layer in model.moe.values():
            layer.router.fit(count_V)
    return model


def training_batches(config: RunConfig, data: Prepared) -> Batches:
    optim, model = config.optim, data.model

    def over(tokens: TokenSet, seed: int) -> Windows | Documents:
        if model.head == "next_token":
            return Windows(tokens, seq=optim.seq, batch=optim.batch, seed=seed, label=model.label)
        return Documents(tokens, max_seq=model.max_seq, batch=optim.batch, seed=seed, label=model.label)

    arrive = config.data.arrive
    if arrive is None:
        return over(data.train, config.seed)
    return Arriving(data.train, stages(arrive, data.train, optim.steps), config.seed, over)


def held_batches(config: RunConfig, model: ModelConfig, tokens: TokenSet) -> Held:
    """What is evaluated on: the same in every run on this data."""
    optim, what = config.optim, "data.held_out"
    if model.head == "next_token":
        source: Batches = Windows(tokens, seq=optim.seq, batch=optim.batch, seed=0, what=what, label=model.label)
    else:
        source = Documents(tokens, max_seq=model.max_seq, batch=optim.batch, seed=0, what=what, label=model.label)
    return Held(source, config.eval_batches)


def accelerator(config: RunConfig) -> tuple[Accelerator, str]:
    """The device, and the precision that `auto` becomes on it."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # it is a singleton that refuses a second run's precision
    cpu = config.device == "cpu"
    precision = config.optim.precision
    if precision == "auto":
        precision = "bf16" if not cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"
    cpu = cpu or ("LOCAL_RANK" in os.environ and not torch.cuda.is_available())  # gloo has to be asked for
    return Accelerator(cpu=cpu, mixed_precision="no" if precision == "fp32" else "bf16"), precision
