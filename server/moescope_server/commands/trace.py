"""`moescope trace`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from moescope.errors import InputError
from moescope_server.commands.output import find_checkpoint, print_json, print_table, progress_bar


def trace(checkpoint: str, data: str, out: Path, *, tokens: int, home: Path | None, json: bool) -> None:
    """Trace a checkpoint over data into a file. Raises `InputError`."""
    path = find_checkpoint(checkpoint, home)
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise InputError(f"{out} is not a file that can be written: give a file name in a folder that exists.")
    from moescope.trace.io import write_trace
    from moescope_server.tasks import make_trace

    with progress_bar() as report:
        made = make_trace(path, source=data, text=None, tokens=tokens, report=report)
        report("writing")
        try:
            write_trace(made, out)
        except OSError as error:
            raise InputError(f"{out} cannot be written: {error.strerror or error}.") from None
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


def _print(summary: dict[str, Any]) -> None:
    rows = [[item["layer"], item["router"], item["num_experts"], item["k"], item["path"]] for item in summary["layers"]]
    print_table(["layer", "router", "experts", "k", "module"], rows)
    checks = summary["self_check"]["checks"]
    print(f"\n{summary['tokens']:,} tokens in {summary['documents']:,} documents, written to {summary['trace']}")
    verdict = "passed" if summary["self_check"]["passed"] else "FAILED" if checks else "not made"
    print(f"self-check {verdict}")
    for item in checks:
        print(f"  {'ok    ' if item['passed'] else 'FAILED'} {item['name']}: {item['detail']}")
