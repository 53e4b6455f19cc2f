"""Training: run configurations, the loop that yields events, exact resume. Torch is imported when first needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moescope.train.preset import Preset, preset_names, presets, read_preset

if TYPE_CHECKING:
    from moescope.train.config import RunConfig, load_run_config, parse_run_config, run_schema
    from moescope.train.loop import train

    PRESETS: tuple[str, ...]

__all__ = [
    "PRESETS",
    "Preset",
    "RunConfig",
    "load_run_config",
    "parse_run_config",
    "preset_names",
    "presets",
    "read_preset",
    "run_schema",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "PRESETS":
        return preset_names()
    if name == "train":
        from moescope.train import loop

        return loop.train
    if name in __all__:
        from moescope.train import config

        return getattr(config, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
