"""`moescope metrics`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from moescope_server.commands.output import find_trace, print_json, print_table, progress_bar


def metrics(trace: str, *, home: Path | None, json: bool) -> None:
    """Measure a trace. Raises `InputError` for a file that is not one."""
    path = find_trace(trace, home)
    from moescope.metrics import Measurement, measure
    from moescope.trace.io import read_trace

    opened = read_trace(path)
    found: list[Measurement] = []
    with progress_bar() as report:
        for done, layer in enumerate(opened.layer_ids):
            report(f"layer {layer}", done / len(opened.layer_ids))
            found += measure(opened, layers=[layer])
    if json:
        measurements = [asdict(item) for item in found]
        print_json({"trace": str(path), "tokens": opened.num_tokens, "measurements": measurements})
        return
    rows = [
        [
            item.layer,
            item.metric if item.label is None else f"{item.metric} ({item.label})",
            item.value,
            item.null,
            item.p,
            item.n,
            item.unit,
            "" if item.value is not None else item.note,
        ]
        for item in found
    ]
    print_table(["layer", "measure", "value", "null", "p", "n", "unit", ""], rows)
