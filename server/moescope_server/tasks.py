"""What each kind of job does. Imported only by a job's own process and the command line: it needs torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moescope.errors import InputError
from moescope.store import JobRow, Store
from moescope_server.analysis import Analysis
from moescope_server.jobs import change_job
from moescope_server.sweeps import sweep_folder
from moescope_server.traces import TraceCache
from moescope_server.training import Clock, Report, follow

if TYPE_CHECKING:
    from moescope.trace.schema import Trace

Task = Callable[[Store, JobRow, Report, Callable[[], bool]], Mapping[str, Any]]

DEFAULT_SOURCES: Final = {"text": "installed", "patches": "digits", "vectors": "clusters"}
"""What a model is traced over if nothing else is said, by what it reads."""


def make_trace(
    checkpoint: Path, *, source: str | Mapping[str, Any] | None, text: str | None, tokens: int, report: Report
) -> Trace:
    """Open a checkpoint and trace it over data. Raises `InputError`."""
    from moescope.adapters import open_checkpoint
    from moescope.data.encode import encode
    from moescope.data.load import load_tokens, pasted
    from moescope.trace.recorder import record_trace

    report("opening the checkpoint")
    model = open_checkpoint(checkpoint, device=_device())
    report("reading the data")
    if text is not None:
        if model.tokenizer is None:
            raise InputError("This model reads no text, so pasted text cannot be traced.")
        data = encode(pasted(text), model.tokenizer, tokens, {"corpus": "pasted", "synthetic": False})
    else:
        data = load_tokens(DEFAULT_SOURCES[model.card.kind] if source is None else source, model.tokenizer, tokens)
    report("tracing", 0.0)

    def progress(done: int, total: int) -> None:
        report("tracing", done / total)

    return record_trace(model, data, progress=progress)


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _trace(store: Store, row: JobRow, report: Report, stop: Callable[[], bool]) -> Mapping[str, Any]:
    from moescope.trace.io import write_trace

    spec = row.spec
    checkpoint = store.checkpoint(spec["checkpoint"])
    trace = make_trace(
        Path(checkpoint.path), source=spec["source"], text=spec["text"], tokens=spec["tokens"], report=report
    )
    name = (
        spec["name"]
        or f"{checkpoint.name} on {'pasted text' if spec['text'] else trace.meta.data.get('corpus', 'data')}"
    )
    id, path = store.new_trace_path(name)
    report("writing the trace")
    write_trace(trace, path)
    made = store.add_trace(path, name, "recorded", id=id, checkpoint=checkpoint.id)
    report("measuring")
    Analysis(store).measurements(TraceCache().open(made))
    return {"trace": made.id}


def _train(store: Store, row: JobRow, report: Report, stop: Callable[[], bool]) -> Mapping[str, Any]:
    run = store.run(row.spec["run"])
    return follow(store, run, resume=bool(row.spec.get("resume")), stop=stop, report=report)


def _project(store: Store, row: JobRow, report: Report, stop: Callable[[], bool]) -> Mapping[str, Any]:
    """A map of one trace, or of every trace of a series, each started from the one before."""
    spec = row.spec
    series, before = spec.get("series") or [spec["trace"]], None
    report("projecting")
    analysis, traces = Analysis(store), TraceCache()
    for place, trace in enumerate(series):

        def tell(stage: str, done: float, place: int = place) -> None:
            report(stage, (place + done) / len(series))

        opened = traces.open(store.trace(trace))
        before = analysis.project(opened, spec["layer"], spec["method"], tell, after=before)
    return {"trace": series[-1], "layer": spec["layer"], "method": spec["method"]}


def _sweep(store: Store, row: JobRow, report: Report, stop: Callable[[], bool]) -> Mapping[str, Any]:
    """Go on with a sweep whose folder the server has made; its cells are told of one by one."""
    from moescope.sweep import resume_sweep
    from moescope.sweep.runner import Progress
    from moescope.train.allocator import keep_freed_memory

    keep_freed_memory()
    id = row.spec["sweep"]
    ended: dict[str, Any] = {"sweep": id, "finished": False}
    change_job(store, row.id, result=ended)  # so that whoever hears of the job knows where to look
    clock: Clock | None = None

    def tell(now: Progress) -> None:
        nonlocal clock
        clock = clock or Clock(now.steps)
        report(f"{now.cell}: {now.stage}", *clock(now.done))

    state = resume_sweep(sweep_folder(store, id), stop=stop, report=tell)
    failed = sum(cell.status == "failed" for cell in state.cells)
    return ended | {"finished": state.status == "finished", "cells": len(state.cells), "failed": failed}


TASKS: Final[Mapping[str, Task]] = {"trace": _trace, "train": _train, "project": _project, "sweep": _sweep}
