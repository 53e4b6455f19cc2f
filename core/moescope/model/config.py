"""What a model is: everything that its shape follows from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from moescope.config import Config, doc, parse
from moescope.data.base import LabelSource
from moescope.errors import InputError
from moescope.routers import ROUTERS
from moescope.routers.base import Place
from moescope.routers.label import LabelConfig

_LARGEST = 1 << 20


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Config):
    """A pre-norm transformer with MoE in any subset of its blocks. Raises `InputError` for what cannot be built."""

    input: Literal["tokens", "patches", "vectors"] = field(default="tokens", metadata=doc("what the model reads"))
    head: Literal["next_token", "class", "values"] = field(
        default="next_token", metadata=doc("what the model predicts: the next token, a class, or numbers")
    )
    vocab_size: int = field(default=0, metadata=doc("token ids, for tokens"))
    d_input: int = field(default=0, metadata=doc("width of an input row, for patches and vectors"))
    num_classes: int = field(default=0, metadata=doc("classes, for the class head"))
    num_values: int = field(default=0, metadata=doc("numbers per item, for the values head"))
    max_seq: int = field(default=256, metadata=doc("longest sequence"))
    d_model: int = field(default=128, metadata=doc("width of the residual stream"))
    num_layers: int = field(default=4, metadata=doc("blocks"))
    num_heads: int = field(default=4, metadata=doc("attention heads; 0 leaves attention out"))
    causal: bool = field(default=True, metadata=doc("attention sees earlier positions only"))
    position: Literal["rotary", "sinusoidal"] = field(
        default="rotary",
        metadata=doc("where positions enter: rotary, in attention; sinusoidal, added to the embedding"),
    )
    norm: Literal["rms", "none"] = field(
        default="rms", metadata=doc("before each part of a block and at the end: RMSNorm or nothing")
    )
    rope_base: float = field(default=10000.0, metadata=doc("base of the rotary wavelengths"))
    d_dense: int = field(default=512, metadata=doc("SwiGLU width of dense blocks"))
    moe_layers: Literal["all", "alternate"] | tuple[int, ...] = field(
        default="all", metadata=doc("blocks with experts: all, alternate (1, 3, ...) or indices")
    )
    num_experts: int = field(default=8, metadata=doc("experts per MoE block"))
    max_experts: int | None = field(
        default=None, metadata=doc("slots per MoE block, for growth; none means num_experts")
    )
    expert: Literal["swiglu", "silu", "linear"] = field(
        default="swiglu",
        metadata=doc(
            "an expert: swiglu, silu (one linear map d_model to d_model, then SiLU) or linear (the map alone)"
        ),
    )
    d_expert: int = field(default=128, metadata=doc("SwiGLU width of an expert, and of a shared one"))
    num_shared_experts: int = field(default=0, metadata=doc("experts that every token uses, beside the routed ones"))
    router: str = field(default="topk_softmax", metadata=doc("router, by its name in the registry"))
    router_config: dict[str, Any] = field(default_factory=dict, metadata=doc("options of the router"))
    tie_embeddings: bool = field(default=True, metadata=doc("next-token head reuses the embedding"))
    leaky_control: bool = field(
        default=False, metadata=doc("allow a router that sees the future under a next-token head; the run says so")
    )

    def __post_init__(self) -> None:
        for name in ("d_model", "num_layers", "d_dense", "num_experts", "d_expert", "max_seq"):
            self.require(1 <= getattr(self, name) <= _LARGEST, name, f"it must lie between 1 and {_LARGEST}.")
        self.require(self.num_layers <= 1024, "num_layers", "more than 1024 blocks are not supported.")
        enough = self.num_experts <= self.num_slots <= 65536
        self.require(enough, "max_experts", "it must be at least num_experts, and at most 65536.")
        self.require(0 <= self.num_shared_experts <= 65536, "num_shared_experts", "it must lie between 0 and 65536.")
        self.require(self.rope_base > 1.0, "rope_base", "it must be above 1.")
        self._check_attention()
        self._check_ends()
        self.require(self.router in ROUTERS, "router", f"the routers are {', '.join(ROUTERS)}.")
        self._check_router()
        wrong = [layer for layer in self.moe_indices if not 0 <= layer < self.num_layers]
        self.require(not wrong, "moe_layers", f"the blocks are 0 to {self.num_layers - 1}.")

    def _check_router(self) -> None:
        """What only an instance of the router can say; no weight is made for it."""
        kind = ROUTERS[self.router]
        place = Place(vocab_size=self.vocab_size if self.input == "tokens" else None)
        with torch.device("meta"):
            router = kind(parse(kind.Config, self.router_config), self.d_model, self.num_slots, place)
        reads = self.input == "tokens" or "tokens" not in router.needs
        self.require(reads, "router", f"it reads token ids, and the model reads {self.input}.")
        if self.head != "next_token":
            return
        last = router.causal_from < self.max_seq
        self.require(last, "max_seq", f"router {self.router!r} is causal from position {router.causal_from} on.")
        if router.causal != "yes" and not self.leaky_control:
            raise InputError(
                f"router {self.router!r} lets a position see later tokens, so a next-token loss would be wrong; "
                "set model.leaky_control = true to run it as a control that says so."
            )

    def _check_attention(self) -> None:
        self.require(0 <= self.num_heads <= self.d_model, "num_heads", "it must lie between 0 and d_model.")
        if self.num_heads:
            even = self.d_model % (2 * self.num_heads) == 0
            self.require(even, "num_heads", f"d_model = {self.d_model} must split into heads of even width.")

    def _check_ends(self) -> None:
        if self.input == "tokens":
            self.require(1 <= self.vocab_size <= 1 << 24, "vocab_size", "a model of tokens needs a vocabulary.")
        else:
            self.require(1 <= self.d_input <= _LARGEST, "d_input", f"a model of {self.input} needs its row's width.")
        if self.head == "next_token":
            self.require(self.input == "tokens", "head", f"{self.input} have no next token; use `class` or `values`.")
            self.require(self.causal, "causal", "a next-token head needs causal attention.")
        elif self.head == "values":
            self.require(1 <= self.num_values <= _LARGEST, "num_values", "the values head needs at least 1 number.")
        else:
            self.require(2 <= self.num_classes <= _LARGEST, "num_classes", "the class head needs at least 2 classes.")

    @property
    def num_slots(self) -> int:
        """E_max, the expert slots of each MoE block."""
        return self.num_experts if self.max_experts is None else self.max_experts

    @property
    def label(self) -> LabelSource | None:
        """The label of the tokens that the router reads, None where it reads none."""
        config = parse(ROUTERS[self.router].Config, self.router_config)
        return LabelSource(config.label, config.values) if isinstance(config, LabelConfig) else None

    @property
    def moe_indices(self) -> tuple[int, ...]:
        """Blocks that hold experts, ascending."""
        if self.moe_layers == "all":
            return tuple(range(self.num_layers))
        if self.moe_layers == "alternate":
            return tuple(range(1, self.num_layers, 2))
        return tuple(sorted({int(layer) for layer in self.moe_layers}))
