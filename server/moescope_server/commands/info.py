"""`moescope info`."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

import moescope
from moescope_server.commands.output import open_store, print_json
from moescope_server.device import describe_device, probe

_PACKAGES = ("torch", "transformers", "numpy", "plotly", "fastapi")


def info(*, home: Path | None, json: bool) -> None:
    """What is installed, on what it runs, what the home folder holds."""
    store = open_store(home)
    try:
        probe()
        found = {
            "version": moescope.__version__,
            "python": platform.python_version(),
            "packages": {name: version(name) for name in _PACKAGES},
            "device": describe_device(),
            "home": str(store.home),
            "samples": str(store.samples) if store.samples else None,
            "checkpoints": len(store.checkpoints()),
            "traces": len(store.traces()),
            "runs": len(store.runs()),
        }
    finally:
        store.close()
    if json:
        print_json(found)
        return
    for name, value in found.items():
        shown = ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else value
        print(f"{name:12} {shown}")
