"""`moescope trace`."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from moescope.errors import InputError
from moescope.files import shown
from moescope_server.commands.output import find_checkpoint, print_json, print_table, progress_bar

_LONGEST_NAME: Final = 220
"""Bytes of a file name; a little is left for the name that it has while it is written."""


def trace(checkpoint: str, data: str, out: Path, *, tokens: int, home: Path | None, json: bool) -> None:
    """Trace a checkpoint over data into a file. Raises `InputError`."""
    path = find_checkpoint(checkpoint, home)
    if not data:
        raise InputError("--data names no data: give a corpus, a file or folder, or hub:NAME.")
    _check_out(out)
    from moescope.trace.io import write_trace
    from moescope_server.tasks import make_trace

    with progress_bar() as report:
        made = make_trace(path, source=data, text=None, tokens=tokens, report=report)
        report("writing")
        write_trace(made, out)
    checks = [dict(item) for item in made.meta.self_check]
    summary: dict[str, Any] = {
        "checkpoint": str(path),
        "trace": str(out),
        "model": dict(made.meta.model),
        "tokens": made.num_tokens,
        "documents": int(made.doc[-1]) + 1 if made.num_tokens else 0,
        "labels": list(made.labels),
        "layers": [asdict(layer) for layer in made.meta.layers],
        "experts": [layer.num_experts for layer in made.meta.layers],
        "self_check": {"passed": bool(checks) and all(item["passed"] for item in checks), "checks": checks},
    }
    print_json(summary) if json else _print(summary)


def _check_out(out: Path) -> None:
    """Refuse what cannot become a file before anything is computed; a device or a pipe would be replaced by one."""
    try:
        taken, folder = out.exists() and not out.is_file(), out.absolute().parent.is_dir()
        too_long = len(os.fsencode(out.name)) > _LONGEST_NAME
    except OSError as error:
        raise InputError(f"{shown(str(out))} cannot be written: {error.strerror or error}.") from None
    if taken or not folder:
        raise InputError(f"{out} is not a file that can be written: give a file name in a folder that exists.")
    if too_long:
        raise InputError(f"{shown(str(out))} cannot be written: its name is longer than {_LONGEST_NAME} bytes.")


def _print(summary: dict[str, Any]) -> None:
    rows = [[item["layer"], item["router"], item["num_experts"], item["k"], item["path"]] for item in summary["layers"]]
    print_table(["layer", "router", "experts", "k", "module"], rows)
    checks = summary["self_check"]["checks"]
    print(f"\n{summary['tokens']:,} tokens in {summary['documents']:,} documents, written to {summary['trace']}")
    verdict = "passed" if summary["self_check"]["passed"] else "FAILED" if checks else "not made"
    print(f"self-check {verdict}")
    for item in checks:
        print(f"  {'ok    ' if item['passed'] else 'FAILED'} {item['name']}: {item['detail']}")
