"""The run of `growth_case` in a home, as a trainer would have left it, or as one that is still at work."""

from __future__ import annotations

import time
from dataclasses import replace

from growth_case import STEPS, growth_events, growth_snapshots
from moescope.events import Event
from moescope.store import Store
from moescope.trace.io import write_trace


def growing_run(store: Store, seconds: float = 0.0) -> str:
    """The run of `growth_case`, its events spread over `seconds`; returns its id."""
    run = store.add_run("A growing run", "made-up", {"steps": STEPS, "synthetic": True}, steps=STEPS)
    folder = store.run_folder(run.id) / "snapshots"
    folder.mkdir(parents=True)
    snapshots = dict(growth_snapshots())
    log = growth_events(run=run.id)
    for index, event in enumerate(log):
        store.append(replace(event, id=0))
        ends = index + 1 == len(log) or log[index + 1].step > event.step
        if ends and event.step in snapshots:
            name = f"step-{event.step:06d}.safetensors"
            write_trace(snapshots[event.step], folder / name)
            row = store.add_trace(folder / name, f"{run.name}, step {event.step}", "run", run=run.id, step=event.step)
            payload = {"path": f"snapshots/{name}", "tokens": row.tokens}
            store.append(Event(run=run.id, step=event.step, kind="snapshot", payload=payload))
        if ends:
            time.sleep(seconds / STEPS)
    return run.id
