"""moescope shows what the experts of a Mixture-of-Experts model specialise in.

The library works without server and frontend; importing it imports neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`moescope.watch`, imported when it is first asked for (by name: lower layers import this package)."""
    if name == "watch":
        return importlib.import_module("moescope.watching").watch
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
