"""Run by torchrun from test_parallel.py: train each given configuration in this process's share of it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import distributed

from moescope.train.config import parse_run_config
from moescope.train.loop import train
from moescope.train.orders import Order

PLANS = {
    "by hand": {
        1: [Order("a", "pause")],
        2: [Order("b", "split", 0, 1), Order("c", "split", 7, 1), Order("d", "checkpoint")],
        3: [Order("e", "go_on"), Order("f", "retire", 1, 0)],
    }
}
"""What is ordered in a case, at the n-th asking."""


def given(name: str) -> Callable[[], Sequence[Order]]:
    plan, asked = PLANS.get(name, {}), iter(range(10**6))
    return lambda: plan.get(next(asked), [])


def never() -> Sequence[Order]:
    raise AssertionError("only the first process is given orders")


def main(cases: Path, out: Path) -> None:
    torch.set_num_threads(1)
    for name, values in json.loads(cases.read_text()).items():
        config = parse_run_config(values)
        orders = never if int(os.environ["RANK"]) else given(name)
        events = list(train(config, out / name, orders=orders))
        half = out / f"{name}-half"
        count = 0

        def stop() -> bool:
            nonlocal count
            count += 1
            return count > 4

        list(train(config, half, stop=stop))
        resumed = list(train(config, half, resume=half))
        if distributed.get_rank() == 0:
            told = {"events": [[e.kind, e.step, dict(e.payload)] for e in events]}
            told["resumed"] = [[e.kind, e.step, dict(e.payload)] for e in resumed]
            (out / f"{name}.json").write_text(json.dumps(told))
        else:
            assert not events and not resumed, "only the first process tells"
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
