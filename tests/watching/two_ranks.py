"""Run by torchrun from test_ranks.py: each process trains on its half of every batch, watched."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parents[1]))
import moescope
from watch_cases import batches, build


def main(home: str, out: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    model = build("mixtral", attention_dropout=0.0)
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(parallel.parameters(), lr=1e-2)
    with moescope.watch(
        parallel, run="two", home=home, log_every=1, load_every=1, snapshot_every=2, probe=["ab"], tokenizer=letters()
    ) as watcher:
        for batch in batches(2, padded=True):
            parallel(**{name: value[2 * rank : 2 * rank + 2] for name, value in batch.items()}).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            watcher.step()
    assert (watcher.id is None) == (rank != 0)
    if rank == 0:
        Path(out).write_text(json.dumps({"id": watcher.id}))
    distributed.destroy_process_group()


def letters() -> object:
    from moescope.adapters.tokenization import byte_tokenizer

    return byte_tokenizer(97)


if __name__ == "__main__":
    main(*sys.argv[1:])
