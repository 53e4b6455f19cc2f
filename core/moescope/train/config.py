"""What a run is: model, data, optimizer, objectives, and what is written down on the way."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from moescope.config import Config, doc, parse, schema
from moescope.data.corruption import CorruptionConfig
from moescope.errors import InputError
from moescope.expansion import ExpansionConfig
from moescope.model.config import ModelConfig
from moescope.model.transformer import build_moe
from moescope.objectives import OBJECTIVES
from moescope.routers import Router
from moescope.train.arrivals import ArriveConfig
from moescope.train.preset import override, parse_override, read_preset

_EVAL_NAME = re.compile(r"[A-Za-z0-9_-]{1,48}")


@dataclass(frozen=True, kw_only=True)
class DataConfig(Config):
    """What is learned from, and what is held out of it."""

    spec: str | dict[str, Any] = field(
        default="installed", metadata=doc("a corpus by name, a file or folder, hub:NAME, or a table {corpus, options}")
    )
    tokens: int = field(default=1_000_000, metadata=doc("most tokens that are read, held-out ones included"))
    vocab_size: int = field(default=2048, metadata=doc("size of the tokenizer trained on the text; text only"))
    tokenizer: str | None = field(default=None, metadata=doc("a tokenizer.json instead of training one; text only"))
    held_out: float = field(default=0.1, metadata=doc("share of the documents that is never trained on"))
    seed: int = field(default=0, metadata=doc("which documents are held out, and the order of synthetic data"))
    arrive: ArriveConfig | None = field(
        default=None,
        metadata=doc("training data that comes bit by bit: {label, order, every}; none: all from the start"),
    )

    def __post_init__(self) -> None:
        self.require(self.tokens >= 1, "tokens", "at least 1.")
        self.require(self.vocab_size >= 257, "vocab_size", "a byte-level tokenizer has at least 257 entries.")
        self.require(0 < self.held_out < 1, "held_out", "it must lie between 0 and 1.")


@dataclass(frozen=True, kw_only=True)
class OptimConfig(Config):
    """AdamW (1711.05101) with linear warm-up and a cosine."""

    steps: int = field(default=1000, metadata=doc("optimizer steps"))
    batch: int = field(default=16, metadata=doc("sequences per step"))
    seq: int = field(default=128, metadata=doc("tokens per sequence; text only, other documents are taken whole"))
    loss_from: int = field(
        default=0, metadata=doc("first position of a sequence whose next token counts; to compare with `sequence`")
    )
    lr: float = field(default=3e-3, metadata=doc("peak learning rate"))
    final_lr: float = field(default=0.1, metadata=doc("learning rate at the end, as a share of the peak"))
    warmup: int = field(default=50, metadata=doc("steps of linear warm-up"))
    beta1: float = field(default=0.9, metadata=doc("decay of the first moment"))
    beta2: float = field(default=0.95, metadata=doc("decay of the second moment"))
    eps: float = field(default=1e-8, metadata=doc("added to the root of the second moment"))
    weight_decay: float = field(default=0.1, metadata=doc("decoupled; not on norms, embeddings, biases, dead slots"))
    clip: float = field(default=1.0, metadata=doc("largest norm of the gradient; 0 does not clip"))
    precision: Literal["auto", "fp32", "bf16"] = field(
        default="auto", metadata=doc("of the matrix products; auto is bf16 on a GPU that has it, else fp32")
    )

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "seq"):
            self.require(getattr(self, name) >= 1, name, "at least 1.")
        self.require(self.batch <= 1 << 20, "batch", f"at most {1 << 20}.")
        self.require(0 <= self.loss_from < self.seq, "loss_from", f"it must lie below seq = {self.seq}.")
        self.require(0 < self.lr < float("inf"), "lr", "it must be positive.")
        self.require(0 <= self.final_lr <= 1, "final_lr", "it must lie between 0 and 1.")
        self.require(0 <= self.warmup <= self.steps, "warmup", f"it must lie between 0 and steps = {self.steps}.")
        for name in ("beta1", "beta2"):
            self.require(0 <= getattr(self, name) < 1, name, "it must lie in [0, 1).")
        for name in ("eps", "weight_decay", "clip"):
            self.require(0 <= getattr(self, name) < float("inf"), name, "it must not be negative.")


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(Config):
    """The fixed tokens whose routing is traced at every snapshot."""

    spec: str | dict[str, Any] | None = field(default=None, metadata=doc("like data.spec; none: held-out documents"))
    tokens: int = field(default=4000, metadata=doc("most tokens"))
    sample: int = field(default=1000, metadata=doc("tokens whose router inputs are kept, for the map; 0 keeps none"))
    logits: bool = field(default=True, metadata=doc("keep the router's logits"))

    def __post_init__(self) -> None:
        self.require(self.tokens >= 1, "tokens", "at least 1.")
        self.require(self.sample >= 0, "sample", "it must not be negative.")


@dataclass(frozen=True, kw_only=True)
class RunConfig(Config):
    """A training run. `model.vocab_size`, `d_input`, `num_classes` and `num_values` follow from the data, whatever
    stands there."""

    model: ModelConfig
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    objectives: dict[str, float | dict[str, Any]] = field(
        default_factory=dict,
        metadata=doc(
            "auxiliary losses by name: a coefficient, or {coefficient, calibrate, options}; `calibrate = true` "
            "rescales by the power of ten that brings the first batch's value to the size of the balance loss"
        ),
    )
    expansion: ExpansionConfig | None = field(
        default=None, metadata=doc("growth of the set of experts; none: it changes by hand only")
    )
    evals: dict[str, CorruptionConfig] = field(
        default_factory=dict, metadata=doc("further evaluations by name: the held-out data, corrupted")
    )
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    log_every: int = field(default=1, metadata=doc("steps between `train` events"))
    load_every: int = field(default=10, metadata=doc("steps between `load` events; 0 writes none"))
    eval_every: int = field(default=100, metadata=doc("steps between evaluations; 0: only first and last"))
    eval_batches: int = field(default=8, metadata=doc("batches of held-out data per evaluation"))
    snapshot_every: int = field(default=100, metadata=doc("steps between traces of the probe; 0: only first and last"))
    checkpoint_every: int = field(default=200, metadata=doc("steps between checkpoints; 0: only the last"))
    keep_checkpoints: int = field(default=2, metadata=doc("newest checkpoints that are kept"))
    seed: int = field(default=0, metadata=doc("of the weights, the order of the data, and noise in routers"))
    threads: int = field(default=0, metadata=doc("CPU threads; 0 leaves torch's choice"))
    device: Literal["auto", "cpu"] = field(default="auto", metadata=doc("auto is a GPU where there is one"))

    def __post_init__(self) -> None:
        for name in ("log_every", "eval_batches", "keep_checkpoints"):
            self.require(getattr(self, name) >= 1, name, "at least 1.")
        for name in ("load_every", "eval_every", "snapshot_every", "checkpoint_every", "threads", "seed"):
            self.require(getattr(self, name) >= 0, name, "it must not be negative.")
        self.require(self.threads <= 1024, "threads", "at most 1024.")
        self.model.require(bool(self.model.moe_indices), "moe_layers", "a run needs at least one block with experts.")
        for name in self.evals:
            self.require(
                bool(_EVAL_NAME.fullmatch(name)), "evals", f"{name[:40]!r} is no name: letters, digits, - and _."
            )
        for name in self.objectives:
            self.objective(name)
        with torch.device("meta"):  # what a router refuses is refused now, not when the data has been read
            router = build_moe(self.model).router
        for name in self.objectives:
            mixed = router.mixes and bool(OBJECTIVES[name].needs)
            self.require(not mixed, "objectives", f"{name} reads experts' outputs per token; soft routing has none.")
        if self.expansion is not None:
            self._check_expansion(self.expansion, router)
        if self.model.input == "tokens":
            first = router.causal_from if self.model.head == "next_token" else 0
            why = f"positions count from {first} on with this router, so it must be at least {first + 1}."
            self.optim.require(first < self.optim.seq, "seq", why)
            fits = self.optim.seq <= self.model.max_seq
            self.optim.require(fits, "seq", f"it must be at most model.max_seq = {self.model.max_seq}.")
        else:
            self.optim.require(self.optim.loss_from == 0, "loss_from", "only a next-token loss has positions.")

    def _check_expansion(self, expansion: ExpansionConfig, router: Router) -> None:
        if not router.grows:
            raise InputError(
                f"expansion: router {self.model.router!r} does not choose experts for each token on its own by a row "
                "per expert, so there is nothing that a copy could take over."
            )
        free = self.model.num_slots > self.model.num_experts
        needs = free or expansion.detector == "never"
        self.model.require(needs, "max_experts", "growth needs more slots than num_experts.")
        there = self.model.moe_indices
        wrong = [] if expansion.layers == "all" else sorted(set(expansion.layers) - set(there))
        blocks = ", ".join(map(str, there))
        expansion.require(not wrong, "layers", f"blocks with experts are {blocks}.")

    def objective(self, name: str) -> tuple[float, bool, Config]:
        """Coefficient, whether it is calibrated, and options of one objective. Raises `InputError` for bad ones."""
        self.require(name in OBJECTIVES, "objectives", f"{name!r} is unknown; there are {', '.join(OBJECTIVES)}.")
        value = self.objectives[name]
        options = dict(value) if isinstance(value, Mapping) else {"coefficient": value}
        coefficient, calibrate = options.pop("coefficient", None), options.pop("calibrate", False)
        good = isinstance(coefficient, int | float) and 0 <= coefficient < float("inf")
        self.require(good, "objectives", f"{name} needs a coefficient that is a number of at least 0.")
        self.require(calibrate in (True, False), "objectives", f"{name}: calibrate is true or false.")
        return float(coefficient or 0), bool(calibrate), parse(OBJECTIVES[name].Config, options)


def load_run_config(preset_or_file: str | Path, overrides: Sequence[str] | Mapping[str, Any] = ()) -> RunConfig:
    """The configuration of a bundled preset or of a TOML file, with keys set from outside.

    overrides: `["optim.lr=1e-3", "model.router=top_p"]` (values are TOML, bare words are strings), or key to value.
    Another router than the preset's starts from its own default options.
    Raises `InputError` naming the key and the value that do not fit.
    """
    pairs = overrides if isinstance(overrides, Mapping) else dict(parse_override(item) for item in overrides)
    return parse_run_config(override(read_preset(preset_or_file).config, pairs))


def parse_run_config(values: Mapping[str, Any]) -> RunConfig:
    """A RunConfig from plain values, as from `dump(config)`; what the model takes from the data may be left out."""
    plain = dict(values)
    model = plain.get("model", {})
    if isinstance(model, Mapping):
        data = plain.get("data", {})
        size = data.get("vocab_size", DataConfig.vocab_size) if isinstance(data, Mapping) else 0
        text = model.get("input", "tokens") == "tokens"
        sizes = {"vocab_size": size} if text else {"d_input": 1, "head": "class"}
        head = model.get("head", sizes.get("head"))
        sizes |= {"num_classes": 2} if head == "class" else {"num_values": 1} if head == "values" else {}
        plain["model"] = {**sizes, **model}
    return parse(RunConfig, plain)


def run_schema() -> dict[str, Any]:
    """JSON schema of RunConfig, with the help text of every field of every table."""
    described = schema(RunConfig)
    for cls in (ModelConfig, DataConfig, ArriveConfig, OptimConfig, ProbeConfig, ExpansionConfig):
        properties = described["$defs"][cls.__name__]["properties"]
        for item in dataclasses.fields(cls):
            properties[item.name].setdefault("description", item.metadata.get("description", ""))
    return described
