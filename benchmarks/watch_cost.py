"""What `moescope.watch` costs: a training step of a small Mixtral, watched in several ways and not, interleaved.

Two figures per way of watching, in processor time of all threads: what is spent in the watcher's own code, as a share
of the rest of that step (mean over steps); and the whole step over a neighbouring one that is not watched, on the same
batch, less 1 (median). The first resolves hundredths of a per cent, the second sees what the first cannot (caches) and
is as noisy as the machine.

    python benchmarks/watch_cost.py [--rounds 30] [--experts 8] [--only drift] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import MixtralConfig, MixtralForCausalLM

import moescope
from moescope.data.base import TokenSet
from moescope.watching import Watcher

VOCAB, WIDTH, LAYERS, HEADS, EXPERT, SEQ, BATCH = 2048, 128, 4, 4, 128, 128, 16
PROBE = 2048
NOTHING = {"log_every": 0, "load_every": 0, "drift": False}
WAYS: dict[str, tuple[dict[str, Any], int]] = {
    "nothing but hooks": (NOTHING, 1),
    "train, every step": (NOTHING | {"log_every": 1}, 1),
    "load, every step": (NOTHING | {"load_every": 1}, 1),
    "drift, an event every step": (NOTHING | {"drift": True, "drift_every": 1}, 1),
    "drift, an event every 10": (NOTHING | {"drift": True, "drift_every": 10}, 1),
    "all, as by default": ({}, 1),
    "a snapshot every step": (NOTHING | {"snapshot_every": 1}, 50),
}
"""What is watched, and how many steps share its cost."""


class Clock:
    """Processor seconds spent in the functions that were handed to `around`."""

    seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.process_time() - began

        return timed

    def watch(self, watcher: Watcher) -> None:
        """Time everything that the watcher does in a step; before it begins."""
        for part, names in (
            (watcher._passes, ("_begin", "_end", "_routed", "_lost")),
            (watcher._gradients, ("_about_to_step",)),
            (watcher, ("step",)),
        ):
            for name in names:
                setattr(part, name, self.around(getattr(part, name)))


def mixtral(experts: int) -> nn.Module:
    torch.manual_seed(0)
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
        use_cache=False,
    )
    return MixtralForCausalLM(config).train()


def stepper(model: nn.Module, after: Callable[[], None]) -> Callable[[Tensor], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step(ids: Tensor) -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        after()

    return step


def probe() -> TokenSet:
    ends = np.arange(1, PROBE + 1, dtype=np.int32)
    return TokenSet(
        kind="text",
        inputs=np.random.default_rng(0).integers(0, VOCAB, PROBE).astype(np.int32),
        doc=(np.arange(PROBE) // SEQ).astype(np.int32),
        labels={},
        source={"corpus": "random", "synthetic": True, "documents": [str(i) for i in range(PROBE // SEQ)]},
        text=bytes(PROBE),
        start=ends - 1,
        end=ends,
    )


def measure(options: dict[str, Any], experts: int, rounds: int, home: str) -> tuple[list[float], list[float]]:
    """Shares of a step, one per round: spent in the watcher, and added to the whole; the order alternates."""
    without = stepper(mixtral(experts), lambda: None)
    watched, clock = mixtral(experts), Clock()
    taken = probe() if "snapshot_every" in options else None
    watcher = moescope.watch(watched, run="cost", home=home, probe=taken, **options)
    clock.watch(watcher)
    inside, whole = [], []
    with watcher:
        within = stepper(watched, lambda: watcher.step())
        for index, ids in enumerate(torch.randint(0, VOCAB, (rounds + 3, BATCH, SEQ))):
            seconds, clock.seconds = {}, 0.0
            for step in (without, within) if index % 2 else (within, without):
                began = time.process_time()
                step(ids)
                seconds[step] = time.process_time() - began
            if index >= 3:
                inside.append(clock.seconds / (seconds[within] - clock.seconds))
                whole.append(seconds[within] / seconds[without] - 1)
    return inside, whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--only", default="", help="ways whose name holds this")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    threads = torch.get_num_threads()
    print(f"{BATCH} x {SEQ} tokens, d {WIDTH}, {LAYERS} layers, E {options.experts}, k 2, {threads} threads")
    told = {}
    for name, (how, shared) in WAYS.items():
        if options.only not in name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            told[name] = measure(how, options.experts, options.rounds, str(Path(folder) / "home"))
        line = f"  {name:28s}"
        for kind, shares in zip(("inside", "whole step"), told[name], strict=True):
            middle, (low, _, high) = statistics.mean(shares), statistics.quantiles(shares, n=4)
            if kind == "whole step" or shared > 1:
                middle = statistics.median(shares)
            line += f"   {kind} {middle / shared:+7.2%} [{low / shared:+.2%} .. {high / shared:+.2%}]"
        print(f"{line}   n = {options.rounds}" + (f", a {shared}th of it" if shared > 1 else ""), flush=True)
    if options.json:
        print(json.dumps(told))


if __name__ == "__main__":
    main()
