"""`python -m moescope.train PRESET|FILE --out FOLDER`; under `torchrun --nproc-per-node N -m moescope.train` the same.

Events are written to FOLDER/events.jsonl and printed, one JSON object a line. On GPUs the processes talk by nccl and
compute in bfloat16 (`optim.precision = "auto"`), on CPUs by gloo in float32.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
import threading
from pathlib import Path

from moescope.errors import InputError


def main() -> int:
    # Read when torch loads. OpenMP threads spin long for one another, which starves the other processes.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    parser = argparse.ArgumentParser(prog="moescope.train", description="Train a model without a home folder.")
    parser.add_argument("preset", metavar="PRESET|FILE", help="a bundled preset or a TOML file")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where everything is written")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting")
    parser.add_argument("--resume", action="store_true", help="go on from the folder's newest checkpoint")
    parser.add_argument("--fork", type=Path, metavar="CHECKPOINT", help="begin with another run's, or a run's newest")
    arguments = parser.parse_args()
    try:
        _train(arguments)
    except InputError as error:
        print(f"moescope: {error}", file=sys.stderr)
        return 2
    finally:
        from torch import distributed

        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()
    return 0


def _train(arguments: argparse.Namespace) -> None:
    from moescope.imports import import_models

    import_models()
    from moescope.train.allocator import keep_freed_memory
    from moescope.train.config import load_run_config
    from moescope.train.loop import train

    keep_freed_memory()
    config = load_run_config(arguments.preset, arguments.set)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    out: Path = arguments.out
    resume = out if arguments.resume else None
    for event in train(config, out, resume=resume, fork=arguments.fork, stop=stop.is_set):
        line = json.dumps(dataclasses.asdict(event))
        print(line, flush=True)
        with (out / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main())
