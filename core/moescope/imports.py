"""First imports of the heavy packages, one thread at a time.

Two threads that first import the same packages in different orders wait for each other; Python notices, gives up, and
hands one of them a half-made module (an ImportError, once in a while, in a server's first second). So what several
threads of a process may import first goes through here. Later calls cost a microsecond.
"""

from __future__ import annotations

import importlib
import threading

_VIEWS = (
    "moescope.data",
    "moescope.trace.io",
    "moescope.metrics",
    "moescope.projection",
    "moescope.figures",
    "moescope.figures.cards.selection",
    "moescope.train.preset",
    "moescope.sweep.lanes",
    "moescope.sweep.runner",
)
_MODELS = ("moescope.model", "moescope.adapters.ours", "moescope.train.config", "moescope.train.forking")

_views_lock = threading.Lock()
_models_lock = threading.Lock()


def import_views() -> None:
    """What reading, measuring and drawing traces needs; not torch."""
    _once(_views_lock, _VIEWS)


def import_models() -> None:
    """What opening and configuring models needs: torch too, which takes seconds."""
    import_views()
    _once(_models_lock, _MODELS)


def _once(lock: threading.Lock, names: tuple[str, ...]) -> None:
    with lock:
        for name in names:
            importlib.import_module(name)
