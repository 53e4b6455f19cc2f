"""Run twice by test_ranks.py: grow as one of two ranks whose held-out losses do not agree; print a digest of it all."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import torch
from torch import distributed

sys.path.insert(0, str(Path(__file__).parents[1]))

import expansion_runs
from expansion_runs import Run, batch
from moescope.model import Batch
from moescope.train.share import Share


def main(rank: int, meeting: str, case: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    share, options = Share.of(expansion_runs.ROWS), json.loads(case)

    def mine(number: int) -> Batch:
        whole = batch(number)
        return whole if number == 9999 else share(whole)

    expansion_runs.batch = mine  # type: ignore[assignment]
    run = Run(options["expansion"], steps=24, **options["model"])
    evaluate = run.growth.held.evaluate
    run.growth.held.evaluate = lambda: evaluate() * (1 + 0.5 * rank * (run.evaluations % 3 - 1))
    while run.done < run.steps:
        records, main_loss = run.backward()
        share.average(run.optimizer.parameters.values())
        told = run.growth.after_backward(run.done, records, main_loss)
        run.optimizer.step(0.01)
        run.done += 1
        run.told += [(run.done, kind, payload) for kind, payload in told + run.growth.after_step(run.done)]
    digest = hashlib.sha256()
    for name, value in sorted(run.tensors()):
        digest.update(name.encode() + value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    counts = {kind: len(run.of(kind)) for kind in ("expansion", "acceptance", "prune", "growth_ended")}
    told_all = json.dumps([item for item in run.told if item[1] != "drift"])
    print(json.dumps({"digest": digest.hexdigest(), "told": told_all, "counts": counts, "alive": run.alive()}))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
