"""The MoE layer against its peers and its floor, forward and backward, side by side in one interleaved run.

Every sample of a contender stands between two samples of the dense floor (one SwiGLU of the same active FLOPs), and
is quoted as the ratio to their mean: machine speed drifts, the ratio holds. Ours and the peers get the same inputs,
the same weights and the same gradients coming in; a check at the start compares their outputs.

    python benchmarks/moe_layer.py [--shapes main,e64,fine,toy] [--dtypes f32,bf16] [--rounds 15] [--ways] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from moescope.model.experts import WAYS, ExpertBank, pick
from moescope.model.layers import MoELayer, SwiGLU
from moescope.routers.base import RouterContext
from moescope.routers.topk_softmax import TopKSoftmax


@dataclass(frozen=True)
class Shape:
    tokens: int
    d_model: int
    d_expert: int
    experts: int
    k: int


SHAPES = {
    "main": Shape(4096, 256, 512, 8, 2),
    "e64": Shape(4096, 256, 512, 64, 2),
    "fine": Shape(4096, 256, 128, 64, 8),
    "toy": Shape(512, 64, 128, 8, 2),
}
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
TARGETS = {
    "f32": {"main": 1.10, "e64": 1.40, "fine": 1.30, "toy": 2.0},
    "bf16": {"main": 1.35, "e64": 1.85, "fine": 2.1, "toy": 3.0},
}
Step = Callable[[Tensor], Tensor]


def ours(shape: Shape, way: str | None) -> MoELayer:
    router = TopKSoftmax(TopKSoftmax.Config(k=shape.k), shape.d_model, shape.experts)
    bank = ExpertBank(shape.experts, shape.d_model, shape.d_expert)
    bank.way = way
    return MoELayer(router, bank, None, shape.experts)


def transformers_block(shape: Shape, implementation: str) -> MixtralSparseMoeBlock:
    config = MixtralConfig(
        hidden_size=shape.d_model,
        intermediate_size=shape.d_expert,
        num_local_experts=shape.experts,
        num_experts_per_tok=shape.k,
    )
    config._experts_implementation = implementation
    return MixtralSparseMoeBlock(config)


def contenders(shape: Shape, dtype: torch.dtype, all_ways: bool) -> dict[str, Step]:
    """Name to forward pass, all with the same weights."""
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return (torch.randn(*size, generator=generator) / size[-1] ** 0.5).to(dtype)

    gate_up = draw(shape.experts, 2 * shape.d_expert, shape.d_model)
    down = draw(shape.experts, shape.d_model, shape.d_expert)
    router = draw(shape.experts, shape.d_model) * 4
    context = RouterContext.simple(shape.tokens, shape.experts, training=True)
    made: dict[str, Step] = {}

    def add_ours(name: str, way: str | None) -> None:
        layer = ours(shape, way)
        with torch.no_grad():
            layer.router.weight.copy_(router)
            layer.bank.gate_up.copy_(gate_up)
            layer.bank.down.copy_(down)
        layer.to(dtype)
        made[name] = lambda x: layer(x, context)[0]

    add_ours("moescope", None)
    for way in WAYS if all_ways else ():
        add_ours(f"moescope, {way}", way)
    for implementation in ("eager", "grouped_mm"):
        block = transformers_block(shape, implementation)
        with torch.no_grad():
            block.gate.weight.copy_(router)
            block.experts.gate_up_proj.copy_(gate_up)
            block.experts.down_proj.copy_(down)
        block.to(dtype)
        made[f"transformers, {implementation}"] = lambda x, block=block: block(x[None])[0]
    return made


def dense(shape: Shape, dtype: torch.dtype) -> nn.Module:
    return SwiGLU(shape.d_model, shape.d_expert * shape.k).to(dtype)


def sample(step: Step, x: Tensor, dy: Tensor, repeats: int) -> float:
    """Seconds of one forward and backward pass, gradients made anew each time."""
    started = time.perf_counter()
    for _ in range(repeats):
        x.grad = None
        step(x).backward(dy)
    return (time.perf_counter() - started) / repeats


def compare(shape: Shape, dtype: torch.dtype, rounds: int, all_ways: bool) -> dict[str, list[float]]:
    torch.manual_seed(1)
    x = torch.randn(shape.tokens, shape.d_model).to(dtype).requires_grad_()
    dy = torch.randn(shape.tokens, shape.d_model).to(dtype)
    floor = dense(shape, dtype)
    steps = contenders(shape, dtype, all_ways)
    outputs = {name: step(x).detach().float() for name, step in steps.items()}
    reference = outputs["transformers, eager"]
    for name, output in outputs.items():
        away = float((output - reference).norm() / reference.norm())
        # We route in float32, transformers in the layer's dtype: in bfloat16 a few tokens' choices flip.
        if away > (0.1 if dtype == torch.bfloat16 else 1e-4):
            raise SystemExit(f"{name} computes something else: relative distance {away:.2g}")
    repeats = max(1, 4096 * 256 // (shape.tokens * shape.d_model))
    for step in (floor, *steps.values()):
        sample(step, x, dy, 2)
    ratios: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        before = sample(floor, x, dy, repeats)
        for name, step in steps.items():
            took = sample(step, x, dy, repeats)
            after = sample(floor, x, dy, repeats)
            ratios[name].append(2 * took / (before + after))
            before = after
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--dtypes", default=",".join(DTYPES))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--ways", action="store_true", help="also time every way of the expert bank by name")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    result: dict[str, dict[str, dict[str, list[float]]]] = {}
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; 1.00 is a dense SwiGLU of equal active FLOPs")
    for dtype in options.dtypes.split(","):
        for name in options.shapes.split(","):
            shape = SHAPES[name]
            ratios = compare(shape, DTYPES[dtype], options.rounds, options.ways)
            result.setdefault(dtype, {})[name] = ratios
            chosen = pick(shape.tokens, shape.k, torch.empty(shape.experts, 2 * shape.d_expert, shape.d_model))
            sizes = f"T {shape.tokens}, d {shape.d_model}, f {shape.d_expert}, E {shape.experts}, k {shape.k}"
            print(f"\n{name} {dtype}: {sizes}")
            for contender, samples in ratios.items():
                low, middle, high = min(samples), statistics.median(samples), max(samples)
                note = f"  ({chosen}; target {TARGETS[dtype][name]:.2f})" if contender == "moescope" else ""
                print(
                    f"  {contender:26s} {middle:6.2f}   [{low:.2f} .. {high:.2f}]  n = {len(samples)}{note}", flush=True
                )
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
