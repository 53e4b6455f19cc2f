"""What a trace costs: 10,000 tokens through a bundled checkpoint, recorded and checked, against the plain forward pass.

Both see the same batches; samples alternate, and the ratio of neighbours is quoted.

    python benchmarks/inspect_cost.py [--checkpoint sample_checkpoints/lm-installed] [--tokens 10000] [--rounds 9]
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from moescope.adapters import open_checkpoint
from moescope.data.load import load_tokens
from moescope.model.batching import collate, sequences
from moescope.trace.recorder import batches, record_trace

SAMPLE = Path(__file__).parents[1] / "sample_checkpoints" / "lm-installed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=SAMPLE)
    parser.add_argument("--data", default="installed")
    parser.add_argument("--tokens", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    model = open_checkpoint(options.checkpoint)
    tokens = load_tokens(options.data, model.tokenizer, options.tokens)
    prepared = [collate(tokens, group) for group in batches(sequences(tokens, model.max_seq), 4096)]

    def plain() -> None:
        with torch.no_grad():
            for batch in prepared:
                model.module(batch) if model.card.format == "moescope" else model.module(input_ids=batch.inputs)

    def traced() -> None:
        record_trace(model, tokens)

    times: dict[str, list[float]] = {"plain forward": [], "traced": []}
    for index in range(options.rounds + 1):
        for name, run in (("plain forward", plain), ("traced", traced)):
            started = time.perf_counter()
            run()
            if index:
                times[name].append(time.perf_counter() - started)
    ratios = [b / a for a, b in zip(*times.values(), strict=True)]
    print(f"{options.checkpoint.name}, {tokens.num_tokens} tokens, {torch.get_num_threads()} threads")
    for name, seconds in times.items():
        print(f"  {name:14s} {statistics.median(seconds):6.3f} s")
    print(f"  ratio {statistics.median(ratios):.2f}   [{min(ratios):.2f} .. {max(ratios):.2f}]  n = {len(ratios)}")


if __name__ == "__main__":
    main()
