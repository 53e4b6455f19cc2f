"""Run by test_kill.py, or by hand: train in a child process, kill it, go on, and tell how it went.

    python tests/train/kill_runs.py PLANS.json OUT

PLANS: by name, {"config": RunConfig, "kills": n, "seed": s} for kills at random moments, so that the lives together
take about as long as the unbroken run; or {"config": ..., "operations": n} for one run per n-th file operation in
checkpoints/, killed just before it, with an expert split by hand at step 3. OUT/NAME gets `whole/` and `broken/`
(`broken-n/`), each with events.jsonl, and told.json.
One warm process forks all lives, so that a life costs no import; it never trains itself.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import select
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import accelerate  # noqa: F401 (so that lives need not import it)
import torch

from moescope.imports import import_models

import_models()

from moescope.train import parse_run_config, state  # noqa: E402
from moescope.train.loop import train  # noqa: E402
from moescope.train.orders import Order  # noqa: E402

FILE_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "os.chmod", "os.truncate")


def live(config: dict[str, Any], folder: Path, tell: int, orders: dict[int, Sequence[Order]]) -> None:
    """Train to the end, from the newest checkpoint if there is one; a byte to `tell` once the first event is there."""
    torch.set_num_threads(1)
    state.clear_remains(folder)
    resume = folder if state.checkpoints(folder) else None
    done = 0 if resume is None else state.Saved.find(folder).counts.step
    asked = iter(range(done, 10**6))
    folder.mkdir(parents=True, exist_ok=True)
    log = os.open(folder / "events.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    events = train(parse_run_config(config), folder, resume=resume, orders=lambda: orders.get(next(asked), ()))
    for event in events:
        os.write(log, json.dumps(asdict(event)).encode() + b"\n")
        os.write(tell, b".")


def spawn(
    config: dict[str, Any], folder: Path, orders: dict[int, Sequence[Order]], dies_at: int = 0
) -> tuple[int, int]:
    """The child's process id, and a pipe that it writes to. With `dies_at` it kills itself before that operation."""
    hear, tell = os.pipe()
    child = os.fork()
    if child:
        os.close(tell)
        return child, hear
    code = 1
    try:
        if dies_at:
            die_before(dies_at, folder / "checkpoints")
        live(config, folder, tell, orders)
        code = 0
    finally:
        os._exit(code)


def die_before(number: int, below: Path) -> None:
    """Kill this process just before its `number`-th file operation below a folder, counted from the armed moment on."""
    count = 0

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if name not in FILE_EVENTS or not any(str(argument).startswith(str(below)) for argument in arguments):
            return
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def ended(child: int) -> bool:
    """Wait for a child; whether it came to the end of its run by itself. Anything but a kill is an error."""
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return False
    if status != 0:
        raise RuntimeError(f"a life ended with {status}")
    return True


def at_random(plan: dict[str, Any], folder: Path, whole: float) -> dict[str, Any]:
    """Kill each life at a moment drawn evenly from its first event on; the last one is let be."""
    draw, kills, steps = random.Random(plan["seed"]), 0, []
    while True:
        child, hear = spawn(plan["config"], folder, {})
        if kills < plan["kills"]:
            select.select([hear], [], [])
            time.sleep(draw.uniform(0, 1.6 * whole / plan["kills"]))
            os.kill(child, signal.SIGKILL)
        else:
            while os.read(hear, 65536):
                pass
        os.close(hear)
        if ended(child):
            return {"kills": kills, "steps": steps}
        kills += 1
        newest = state.checkpoints(folder)
        steps.append(state.Saved.find(newest[-1]).counts.step if newest else 0)


def run(config: dict[str, Any], folder: Path, orders: dict[int, Sequence[Order]], dies_at: int = 0) -> bool:
    child, hear = spawn(config, folder, orders, dies_at)
    while os.read(hear, 65536):
        pass
    os.close(hear)
    return ended(child)


def carry_out(plan: dict[str, Any], out: Path) -> None:
    told: dict[str, Any] = {}
    orders = {3: [Order("by hand", "split", 0, 0)]} if "operations" in plan else {}
    if not run(plan["config"], out / "whole", orders):
        raise RuntimeError("the unbroken run was killed")
    if "kills" in plan:
        times = [json.loads(line)["time"] for line in (out / "whole/events.jsonl").read_text().splitlines()]
        told = at_random(plan, out / "broken", times[-1] - times[0])
    else:
        told["killed"] = []
        for number in itertools.count(1, plan["operations"]):
            folder = out / f"broken-{number}"
            if run(plan["config"], folder, orders, number):
                break
            if not run(plan["config"], folder, orders):
                raise RuntimeError("killed twice")
            told["killed"].append(number)
    (out / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    plans: dict[str, dict[str, Any]] = json.loads(Path(sys.argv[1]).read_text())
    for name, plan in plans.items():
        parse_run_config(plan["config"])  # loads what is loaded late
        carry_out(plan, Path(sys.argv[2]) / name)
