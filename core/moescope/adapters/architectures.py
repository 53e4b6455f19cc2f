"""The table of foreign architectures: one row per `model_type`. A row is all it takes to read one more family.

Nothing here imports torch. What a row cannot say is a rule of `adapters/rules.py` (how a family scores, selects and
gates) or of `SPARSE` below (which blocks have experts), each named by the row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from moescope.errors import InputError
from moescope.files import shown

Plain = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """How one family of Mixture-of-Experts models is laid out.

    model_type:    as config.json spells it. title: as people spell it.
    experts_keys:  where E stands in config.json; all that are there must agree. k_keys: the same for k.
    hidden_key, expert_width_key, layers_key, vocab_key, context_key: d, I, L, V and the longest sequence.
    router_module: path of the router in memory, `{layer}` standing for the block. It owns `weight` [E, d].
    experts_module: path of the module that runs the experts in memory; it is called with (x, indices, gates).
    router_disk:   regular expression of the router weight's name on disk, with group `layer`.
    expert_disk:   the same for expert weights, with groups `layer`, `part`, and `expert` where each stands alone.
    expert_shapes: shape of each `part` in E, I and d; parts of stacked experts begin with E.
    embedding_disk: the token embedding [V, d]. block_disk: prefix of a block's tensors, with group `layer`.
    rule:          how scores, indices and gates follow from logits: a name in `rules.RULES`.
    renormalise:   whether the chosen gates are made to sum to 1, or the config flag that says so.
    gates_in:      dtype of the gates: `float32`, or `logits` where they are cast back to the logits' dtype.
    sparse:        which blocks have experts: a name in `SPARSE`.
    contract:      what the router module returns. `v5`: logits [T, E], gates [T, k], indices [T, k].
    shared:        the experts that every token uses, by module name, or "".
    """

    model_type: str
    title: str
    experts_keys: tuple[str, ...] = ("num_experts", "num_local_experts")
    k_keys: tuple[str, ...] = ("num_experts_per_tok",)
    hidden_key: str = "hidden_size"
    expert_width_key: str = "moe_intermediate_size"
    layers_key: str = "num_hidden_layers"
    vocab_key: str = "vocab_size"
    context_key: str = "max_position_embeddings"
    router_module: str = "model.layers.{layer}.mlp.gate"
    experts_module: str = "model.layers.{layer}.mlp.experts"
    router_disk: str = r"model\.layers\.(?P<layer>\d+)\.mlp\.gate\.weight"
    expert_disk: str = (
        r"model\.layers\.(?P<layer>\d+)\.mlp\.experts\.((?P<expert>\d+)\.)?(?P<part>[a-z_0-9]+?)(\.weight)?"
    )
    expert_shapes: Mapping[str, tuple[str, ...]]
    embedding_disk: str = "model.embed_tokens.weight"
    block_disk: str = r"model\.layers\.(?P<layer>\d+)\."
    rule: str = "softmax_topk"
    renormalise: bool | str
    gates_in: Literal["float32", "logits"]
    sparse: str = "all"
    contract: Literal["v5"] = "v5"
    shared: str = ""


SWIGLU: Final[dict[str, tuple[str, ...]]] = {
    "gate_proj": ("I", "d"),
    "up_proj": ("I", "d"),
    "down_proj": ("d", "I"),
    "gate_up_proj": ("E", "2I", "d"),
}

ARCHITECTURES: Final[dict[str, Architecture]] = {
    row.model_type: row
    for row in (
        Architecture(
            model_type="mixtral",
            title="Mixtral",
            expert_width_key="intermediate_size",
            router_disk=r"model\.layers\.(?P<layer>\d+)\.(block_sparse_moe|mlp)\.gate\.weight",
            expert_disk=(
                r"model\.layers\.(?P<layer>\d+)\.(block_sparse_moe|mlp)\.experts\."
                r"((?P<expert>\d+)\.)?(?P<part>[a-z_0-9]+?)(\.weight)?"
            ),
            expert_shapes={"w1": ("I", "d"), "w2": ("d", "I"), "w3": ("I", "d"), **SWIGLU},
            renormalise=True,
            gates_in="float32",
        ),
        Architecture(
            model_type="olmoe",
            title="OLMoE",
            expert_width_key="intermediate_size",
            expert_shapes=SWIGLU,
            renormalise="norm_topk_prob",
            gates_in="logits",
        ),
        Architecture(
            model_type="qwen2_moe",
            title="Qwen2-MoE",
            expert_shapes=SWIGLU,
            renormalise="norm_topk_prob",
            gates_in="logits",
            sparse="step",
            shared="shared_expert",
        ),
        Architecture(
            model_type="qwen3_moe",
            title="Qwen3-MoE",
            expert_shapes=SWIGLU,
            renormalise="norm_topk_prob",
            gates_in="logits",
            sparse="step",
        ),
    )
}
"""model_type to row."""


def count(config: Plain, keys: tuple[str, ...], what: str) -> int:
    """A positive whole number of config.json under the first of `keys` that is there.

    Keys may be dotted paths. Raises `InputError` where none is there, where two disagree, and for what is no count.
    """
    found = {key: value for key in keys if (value := _get(config, key)) is not None}
    if not found:
        raise InputError(f"config.json does not say the {what} (looked for {', '.join(keys)}).")
    for key, value in found.items():
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 31:
            raise InputError(f"config.json: {key} = {shown(value)} is not a whole number.")
    if len(set(found.values())) > 1:
        raise InputError(f"config.json contradicts itself: {', '.join(f'{k} = {v}' for k, v in found.items())}.")
    key, value = next(iter(found.items()))
    if value == 0:
        raise InputError(f"config.json: {key} = 0, but the {what} must be at least 1.")
    return int(value)


def _get(config: Plain, path: str) -> Any:
    value: Any = config
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _all_blocks(config: Plain, num_layers: int) -> set[int]:
    return set(range(num_layers))


def _every_step(config: Plain, num_layers: int) -> set[int]:
    """Qwen: every `decoder_sparse_step`-th block, counted from 1, except `mlp_only_layers`."""
    step = count({"decoder_sparse_step": 1, **config}, ("decoder_sparse_step",), "step between blocks with experts")
    dense = config.get("mlp_only_layers") or []
    if not isinstance(dense, list) or not all(isinstance(layer, int) for layer in dense):
        raise InputError(f"config.json: mlp_only_layers = {shown(dense)} is not a list of blocks.")
    return {layer for layer in range(num_layers) if layer not in dense and (layer + 1) % step == 0}


SPARSE: Final[dict[str, Callable[[Plain, int], set[int]]]] = {"all": _all_blocks, "step": _every_step}
"""Which blocks have experts: name to function of config.json and the number of blocks."""
