"""moescope shows what the experts of a Mixture-of-Experts model specialise in.

The library works without server and frontend; importing it imports neither torch nor transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moescope.watching import watch

__all__ = ["__version__", "watch"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "watch":
        from moescope import watching

        return watching.watch
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
