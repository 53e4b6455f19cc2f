"""Watching a model in somebody else's training loop. Torch is imported when first needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moescope.watching.callback import WatchCallback
    from moescope.watching.watcher import Watcher, watch

__all__ = ["WatchCallback", "Watcher", "watch"]


def __getattr__(name: str) -> Any:
    if name == "WatchCallback":
        from moescope.watching import callback

        return callback.WatchCallback
    if name in __all__:
        from moescope.watching import watcher

        return getattr(watcher, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
