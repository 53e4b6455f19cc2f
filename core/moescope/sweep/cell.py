"""One cell: train it where it stands, write down what happens, and take its values once it is done."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Literal

from moescope.errors import InputError
from moescope.events import Event
from moescope.sweep.folder import Plan, held, write_json
from moescope.sweep.grid import Cell
from moescope.sweep.log import EventLog, last_step, read_events
from moescope.sweep.names import ALWAYS

ENDED: Final = "cell.json"
_PATIENCE: Final = 120.0

Outcome = Literal["finished", "failed", "stopped"]

Told = Callable[[str, int], None]
"""Told the stage and the steps done."""


class _Stopped(Exception):  # noqa: N818 - not an error: someone asked for it
    """Raised where the cell was told to stop before its first step."""


def ended(run: Path) -> dict[str, Any] | None:
    """What cell.json says, None where the cell has not ended, or the file is not what a cell wrote."""
    try:
        plain = json.loads((run / ENDED).read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    known = isinstance(plain, dict) and plain.get("status") in ("finished", "failed")
    whole = known and isinstance(plain.get("values"), list) and isinstance(plain.get("facts"), dict)
    return plain if whole else None


def run_cell(plan: Plan, cell: Cell, stop: Callable[[], bool], told: Told) -> Outcome:
    """Train the cell from its newest checkpoint, or from the start. One that failed is tried again.

    Raises `InputError` where another process has been at this cell for minutes; a failure of the cell is written down.
    """
    run = plan.run(cell)
    with held(run / ".lock", f"Another process is at work on {cell.name}.", _PATIENCE):
        before = ended(run)
        if before is not None and before["status"] == "finished":
            return "finished"
        (run / ENDED).unlink(missing_ok=True)
        log = EventLog(run)
        try:
            finished = _train(plan, cell, log, stop, told)
            if finished:
                told("measuring", cell.steps)
                write_json(run / ENDED, _outcome(plan, cell))
            return "finished" if finished else "stopped"
        except _Stopped:
            return "stopped"
        except Exception as error:
            fail(run, cell.name, _sentence(error), log)
            return "failed"
        finally:
            log.close()


def fail(run: Path, name: str, error: str, log: EventLog) -> None:
    """Write down that a cell failed."""
    log.append(Event(run=name, step=last_step(run), kind="run_failed", payload={"error": error}, time=time.time()))
    write_json(run / ENDED, {"status": "failed", "error": error, "values": [], "facts": {}})


def _train(plan: Plan, cell: Cell, log: EventLog, stop: Callable[[], bool], told: Told) -> bool:
    """Whether the cell came to its last step."""
    from moescope.train.config import parse_run_config
    from moescope.train.loop import train
    from moescope.train.state import checkpoints

    run = plan.run(cell)

    def prepare(stage: str) -> None:
        told(stage, 0)
        if stop():
            raise _Stopped

    resume = run if checkpoints(run) else None
    finished = False
    for event in train(parse_run_config(cell.config), run, resume=resume, stop=stop, progress=prepare):
        log.append(event)
        finished = event.kind == "run_finished"
        told("training", event.step)
    return finished


def _outcome(plan: Plan, cell: Cell) -> Mapping[str, Any]:
    from moescope.sweep.values import Finished, values

    done = Finished(plan.run(cell), read_events(plan.run(cell)), cell.variant in plan.leaky)
    metrics = dict.fromkeys((*plan.config.metrics, *ALWAYS))
    found = [asdict(value) for value in values(done, list(metrics))]
    return {"status": "finished", "error": None, "values": found, "facts": done.facts()}


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split())[:1000]
    if isinstance(error, InputError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
