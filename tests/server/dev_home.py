"""Fill a home with made-up traces and runs, to work on the page: `python tests/server/dev_home.py --home X`.

`--live SECONDS` adds one more growing run to a home that may be served meanwhile, spread over so many seconds.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from growing_home import growing_run
from moescope.events import Event
from moescope.store import Store
from moescope.store.rows import RunRow
from moescope.trace.io import write_trace
from synthetic import make_trace


def fill(store: Store, *, tokens: int = 6000, steps: int = 300) -> str:
    """Two traces (8 and 64 experts), a growing run and a finished run with snapshots; returns the last one's id."""
    for name, experts, k in (("Synthetic, 8 experts", 8, 2), ("Synthetic, 64 experts", 64, 8)):
        id, path = store.new_trace_path(name)
        write_trace(make_trace(tokens=tokens, layers=4, experts=experts, k=k), path)
        store.add_trace(path, name, "recorded", id=id)
    growing_run(store)
    return fake_run(store, steps)


def fake_run(store: Store, steps: int) -> str:
    run = store.add_run("A made-up run", "made-up", {"steps": steps, "synthetic": True}, steps=steps)
    folder = store.run_folder(run.id) / "snapshots"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    preference = rng.normal(size=(3, 8))
    store.append(Event(run=run.id, step=0, kind="run_started", payload={"config": {}, "params": 0, "device": "none"}))
    for step in range(1, steps + 1):
        store.append_many(_step(run.id, step, steps, preference, rng))
        if step % 100 == 0:
            name = f"step-{step:06d}.safetensors"
            write_trace(make_trace(tokens=1500, strength=3 * step / steps), folder / name)
            row = store.add_trace(folder / name, f"{run.name}, step {step}", "run", run=run.id, step=step)
            payload = {"path": f"snapshots/{name}", "tokens": row.tokens}
            store.append(Event(run=run.id, step=step, kind="snapshot", payload=payload))
    store.append(Event(run=run.id, step=steps, kind="run_finished", payload={"loss": 2.1, "seconds": 60.0}))
    store.database.update(RunRow, run.id, steps=steps)
    return run.id


def _step(run: str, step: int, steps: int, preference: np.ndarray, rng: np.random.Generator) -> list[Event]:
    loss = 2 + 4 * math.exp(-4 * step / steps) + float(rng.normal(scale=0.05))
    payload = {
        "loss": loss,
        "objectives": {"load_balance": 0.02},
        "lr": 1e-3,
        "grad_norm": 1.0,
        "tokens": 512 * step,
        "seconds": 0.2 * step,
    }
    events = [Event(run=run, step=step, kind="train", payload=payload)]
    if step % 5 == 0:
        weight = np.exp(preference * step / steps + rng.normal(scale=0.05, size=preference.shape))
        load = weight / weight.sum(1, keepdims=True)
        layers = [
            {
                "layer": layer,
                "load": row.tolist(),
                "maxvio": float(row.max() * 8 - 1),
                "dropped": 0.0,
                "tokens": 512,
                "experts_per_token": 2.0,
            }
            for layer, row in enumerate(load)
        ]
        events.append(Event(run=run, step=step, kind="load", payload={"layers": layers}))
    if step % 50 == 0:
        events.append(Event(run=run, step=step, kind="eval", payload={"loss": loss + 0.1, "tokens": 4096}))
    return events


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--live", type=float, help="only add a growing run, over so many seconds")
    given = parser.parse_args()
    if given.live is None:
        fill(Store(given.home))
    else:
        growing_run(Store(given.home), given.live)
