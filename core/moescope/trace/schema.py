"""The trace: who went where. One self-contained safetensors file; this module says what stands in it.

Shapes: T tokens, D documents, L MoE layers, E experts and K slots of one layer, d model width, n sampled tokens. Where
experts died, ids have gaps: E then counts up to the last alive one, and dead ones have logits of -inf, no probability
and no tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from moescope.data.base import Labels

SCHEMA_VERSION: Final = 1


@dataclass(frozen=True)
class TensorSpec:
    """One row of the schema's table: a tensor's name (`{layer}`, `{label}` stand for one each) and what it holds."""

    name: str
    dtypes: tuple[str, ...]
    shape: str
    unit: str
    meaning: str
    optional: bool = False


TENSORS: Final[tuple[TensorSpec, ...]] = (
    TensorSpec("token.doc", ("I32",), "[T]", "index", "document of each token, non-decreasing"),
    TensorSpec("token.position", ("I32",), "[T]", "index", "position in the sequence that the model saw"),
    TensorSpec("token.id", ("I32",), "[T]", "id", "token id in the model's vocabulary; text only", True),
    TensorSpec("token.start", ("I32",), "[T]", "byte", "start of the token in text.bytes; text only", True),
    TensorSpec("token.end", ("I32",), "[T]", "byte", "end of the token in text.bytes; text only", True),
    TensorSpec("text.bytes", ("U8",), "[bytes]", "UTF-8", "text of all documents, one after another; text only", True),
    TensorSpec("image.pixels", ("U8",), "[D, H, W]", "grey 0-255", "the image of each document; patches only", True),
    TensorSpec("label.{label}", ("I16",), "[T]", "code", "index into the label's names, -1 unlabelled", True),
    TensorSpec(
        "layer.{layer}.experts", ("U8", "I16"), "[T, K]", "expert", "chosen experts, best first; 255 or -1: empty"
    ),
    TensorSpec(
        "layer.{layer}.gates", ("F32",), "[T, K]", "weight", "what weighs each expert's output; 0 where not sent"
    ),
    TensorSpec(
        "layer.{layer}.sent",
        ("BOOL",),
        "[T, K]",
        "",
        "false where a wanted assignment was dropped; absent: none was",
        True,
    ),
    TensorSpec("layer.{layer}.entropy", ("F32",), "[T]", "nat", "entropy of the router's distribution over experts"),
    TensorSpec(
        "layer.{layer}.margin",
        ("F32",),
        "[T]",
        "score",
        "score of the last chosen minus the first not chosen; NaN where there is none of either",
    ),
    TensorSpec(
        "layer.{layer}.mean_probs", ("F64",), "[E]", "probability", "mean over tokens of the router's distribution"
    ),
    TensorSpec("layer.{layer}.logits", ("F32",), "[T, E]", "logit", "raw router output", True),
    TensorSpec("sample.tokens", ("I32",), "[n]", "index", "tokens whose hidden vectors were kept, ascending", True),
    TensorSpec("layer.{layer}.hidden", ("F16", "F32"), "[n, d]", "", "router inputs of the sampled tokens", True),
)
"""Every tensor of a trace. `docs/trace.md` is generated from it; reading checks a file against it."""


@dataclass(frozen=True, kw_only=True)
class LayerMeta:
    """What one MoE layer was.

    layer: index of the block in the model. path: module path of the router. router: registry id, or the family's rule.
    num_experts: alive experts. k: experts per token where fixed, None where it varies. causal: as the router declares.
    alive: their ids, ascending, where they have gaps; None: 0 to num_experts - 1.
    """

    layer: int
    path: str
    router: str
    num_experts: int
    k: int | None
    causal: bool = True
    alive: tuple[int, ...] | None = None

    @property
    def width(self) -> int:
        """E of the tensors: one more than the largest id."""
        return self.num_experts if self.alive is None else self.alive[-1] + 1


@dataclass(frozen=True, kw_only=True)
class TraceMeta:
    """What the model was, what the tokens were, and whether the capture checked itself.

    model: `name`, `family`, `params`, `d_model`, `num_layers`, and anything else worth saying.
    data: the TokenSet's `source`. self_check: list of `{name, passed, detail}`; an empty list was not checked.
    """

    model: Mapping[str, Any]
    data: Mapping[str, Any]
    kind: str
    layers: tuple[LayerMeta, ...]
    self_check: tuple[Mapping[str, Any], ...] = ()
    created: str = ""
    version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class LayerTrace:
    """One MoE layer of a trace. `expert_TK` is int32 with -1 for empty slots, whatever the file's dtype."""

    meta: LayerMeta
    expert_TK: np.ndarray
    gate_TK: np.ndarray
    sent_TK: np.ndarray
    entropy_T: np.ndarray
    margin_T: np.ndarray
    mean_probs_E: np.ndarray
    logits_TE: np.ndarray | None
    hidden_nd: np.ndarray | None

    @property
    def wanted_TK(self) -> np.ndarray:
        return self.expert_TK >= 0

    @property
    def top1_T(self) -> np.ndarray:
        """int32 [T]: the best expert that the token wanted, -1 where there is none."""
        top: np.ndarray = self.expert_TK[:, 0]
        return top


@dataclass(frozen=True)
class Trace:
    """A trace in memory, or mapped from a file. Layers are read when asked for: `trace.layer(l)`."""

    meta: TraceMeta
    doc: np.ndarray
    position: np.ndarray
    labels: Mapping[str, Labels]
    layers: Mapping[int, LayerTrace]
    token_id: np.ndarray | None = None
    start: np.ndarray | None = None
    end: np.ndarray | None = None
    text: bytes = b""
    images: np.ndarray | None = None
    sample: np.ndarray | None = None

    @property
    def num_tokens(self) -> int:
        return int(self.doc.shape[0])

    @property
    def layer_ids(self) -> tuple[int, ...]:
        return tuple(meta.layer for meta in self.meta.layers)

    def token_text(self, index: int) -> str:
        """The text of one token; a token that splits a character shows U+FFFD."""
        if self.start is None or self.end is None:
            return f"#{int(self.position[index])}"
        return self.text[int(self.start[index]) : int(self.end[index])].decode("utf-8", errors="replace")
