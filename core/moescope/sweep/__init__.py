"""Sweeps: a grid of runs, variants x seeds, and one table of what came out. Torch is imported when cells are run."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from moescope.sweep.claims import Claim
    from moescope.sweep.config import ClaimConfig, SweepConfig, VariantConfig
    from moescope.sweep.file import SweepFile, folder_name, read_sweep, sweep_names, sweep_presets
    from moescope.sweep.frontiers import End, Frontier, Rung, frontier
    from moescope.sweep.lanes import Lane, Race, race
    from moescope.sweep.runner import Progress, plan_sweep, resume_sweep, run_sweep
    from moescope.sweep.states import CellState, State, Variant, state
    from moescope.sweep.summaries import Summary, summary
    from moescope.sweep.table import Row, rows

    SWEEPS: tuple[str, ...]

_WHERE: Final = {
    "claims": ("Claim",),
    "config": ("ClaimConfig", "SweepConfig", "VariantConfig"),
    "file": ("SweepFile", "folder_name", "read_sweep", "sweep_names", "sweep_presets"),
    "frontiers": ("End", "Frontier", "Rung", "frontier"),
    "lanes": ("Lane", "Race", "race"),
    "runner": ("Progress", "plan_sweep", "resume_sweep", "run_sweep"),
    "states": ("CellState", "State", "Variant", "state"),
    "summaries": ("Summary", "summary"),
    "table": ("Row", "rows"),
}

__all__ = [
    "SWEEPS",
    "CellState",
    "Claim",
    "ClaimConfig",
    "End",
    "Frontier",
    "Lane",
    "Progress",
    "Race",
    "Row",
    "Rung",
    "State",
    "Summary",
    "SweepConfig",
    "SweepFile",
    "Variant",
    "VariantConfig",
    "folder_name",
    "frontier",
    "plan_sweep",
    "race",
    "read_sweep",
    "resume_sweep",
    "rows",
    "run_sweep",
    "state",
    "summary",
    "sweep_names",
    "sweep_presets",
]


def __getattr__(name: str) -> Any:
    if name == "SWEEPS":
        from moescope.sweep.file import sweep_names

        return sweep_names()
    for module, names in _WHERE.items():
        if name in names:
            return getattr(importlib.import_module(f"moescope.sweep.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
