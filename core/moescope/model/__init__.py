"""The model: attention, expert bank, MoE layer, transformer over tokens, patches or vectors; checkpoints; batching."""

from __future__ import annotations

from moescope.model.batch import IGNORED, Batch, ModelOutput, loss, num_targets
from moescope.model.batching import collate, sequences
from moescope.model.checkpoint import load_checkpoint, save_checkpoint
from moescope.model.config import ModelConfig
from moescope.model.experts import ExpertBank
from moescope.model.layers import MoELayer
from moescope.model.transformer import Transformer, active_params, num_params

__all__ = [
    "IGNORED",
    "Batch",
    "ExpertBank",
    "MoELayer",
    "ModelConfig",
    "ModelOutput",
    "Transformer",
    "active_params",
    "collate",
    "load_checkpoint",
    "loss",
    "num_params",
    "num_targets",
    "save_checkpoint",
    "sequences",
]
