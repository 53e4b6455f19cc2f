"""A training step of the small language model against transformers' Mixtral of the same shape, interleaved.

Both run forward, next-token loss, one balance loss, backward, clipping and AdamW on the same batches. Quoted is the
ratio of neighbouring samples (ours over theirs); below 1 is faster.

    python benchmarks/train_step.py [--rounds 15] [--experts 8] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import MixtralConfig, MixtralForCausalLM

from moescope.model import Batch, ModelConfig, Transformer, loss, num_params
from moescope.objectives import OBJECTIVES

VOCAB, WIDTH, LAYERS, HEADS, EXPERT, SEQ, BATCH = 2048, 128, 4, 4, 128, 128, 16


def ours(experts: int) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    config = ModelConfig(
        vocab_size=VOCAB,
        d_model=WIDTH,
        num_layers=LAYERS,
        num_heads=HEADS,
        num_experts=experts,
        d_expert=EXPERT,
        max_seq=SEQ,
        router_config={"k": 2},
    )
    model = Transformer(config).train()
    kind = OBJECTIVES["load_balance"]
    balance = kind(kind.Config())

    def step_loss(ids: Tensor) -> Tensor:
        target = torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], -100)], dim=1)
        batch = Batch(inputs=ids, valid=torch.ones_like(ids, dtype=torch.bool), target=target)
        output = model(batch)
        parts = torch.stack([balance(record) for record in output.records])
        return loss(output, batch) + 0.01 * parts.sum()

    return model, step_loss


def mixtral(experts: int) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    config = MixtralConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=EXPERT,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        num_local_experts=experts,
        num_experts_per_tok=2,
        max_position_embeddings=SEQ,
        tie_word_embeddings=True,
        output_router_logits=True,
        router_aux_loss_coef=0.01,
        use_cache=False,
    )
    model = MixtralForCausalLM(config).train()
    return model, lambda ids: model(input_ids=ids, labels=ids).loss


def stepper(model: nn.Module, step_loss: Callable[[Tensor], Tensor]) -> Callable[[Tensor], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step(ids: Tensor) -> None:
        step_loss(ids).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    built = {"moescope": ours(options.experts), "transformers Mixtral": mixtral(options.experts)}
    steps = {name: stepper(*parts) for name, parts in built.items()}
    batches = torch.randint(0, VOCAB, (options.rounds + 2, BATCH, SEQ))
    times: dict[str, list[float]] = {name: [] for name in steps}
    for index, ids in enumerate(batches):
        for name, step in steps.items():
            started = time.perf_counter()
            step(ids)
            if index >= 2:
                times[name].append(time.perf_counter() - started)
    ratios = [a / b for a, b in zip(times["moescope"], times["transformers Mixtral"], strict=True)]
    threads = torch.get_num_threads()
    print(f"{BATCH} x {SEQ} tokens, d {WIDTH}, {LAYERS} layers, E {options.experts}, k 2, {threads} threads")
    for name, (model, _) in built.items():
        print(f"  {name:22s} {statistics.median(times[name]) * 1e3:8.1f} ms   {num_params(model):,} parameters")
    print(f"  ratio {statistics.median(ratios):.2f}   [{min(ratios):.2f} .. {max(ratios):.2f}]  n = {len(ratios)}")
    if options.json:
        print(json.dumps({"seconds": times, "ratio": ratios}))


if __name__ == "__main__":
    main()
