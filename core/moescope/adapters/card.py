"""What a checkpoint is, told from its configuration and the headers of its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moescope.data.base import Kind
from moescope.trace.schema import LayerMeta

TokenizerKind = Literal["tokenizer.json", "bytes", "none"]


@dataclass(frozen=True, kw_only=True)
class Card:
    """A checkpoint in a few numbers. `dataclasses.asdict` of it is JSON.

    name:       the folder's name. description: the checkpoint's own words, where it has any.
    format:     `moescope` (ours) or `transformers`. family: `moescope`, or the `model_type`.
    params:     stored parameters, experts included. dtype: of most of them, as safetensors names it.
    layers:     the blocks with experts; `num_layers` counts the dense ones too.
    max_seq:    positions that the model is fed at once. vocab_size: 0 unless the model reads tokens.
    d_input:    width of an input row, for patches and vectors; else 0.
    tokenizer:  how text becomes tokens: the folder's `tokenizer.json`, its `bytes`, or `none` (text cannot be read).
    size_bytes: of the weights' files. problems: sentences worth knowing before trusting what it shows.
    """

    name: str
    description: str = ""
    format: Literal["moescope", "transformers"]
    family: str
    kind: Kind
    params: int
    dtype: str
    d_model: int
    num_layers: int
    layers: tuple[LayerMeta, ...]
    max_seq: int
    vocab_size: int = 0
    d_input: int = 0
    tokenizer: TokenizerKind = "none"
    size_bytes: int = 0
    problems: tuple[str, ...] = ()
