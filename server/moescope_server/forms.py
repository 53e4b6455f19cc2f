"""What the form of a new run is made from: the settings of a run, and the options of everything that they can name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any

from moescope.config import Config, schema
from moescope.imports import import_models


@cache
def form_schema() -> dict[str, Any]:
    """`{schema, options}`: JSON schemas with the help text of every field. Imports torch, once in a process."""
    import_models()
    from moescope.data import CORPORA
    from moescope.expansion import ACCEPTORS, DETECTORS, INITIALISERS
    from moescope.objectives import OBJECTIVES
    from moescope.routers import ROUTERS
    from moescope.train.config import run_schema

    options: dict[str, dict[str, Any]] = {
        "routers": {
            id: _entry(kind, kind.Config, causal=kind.causal, learns=kind.learns, grows=kind.grows)
            for id, kind in ROUTERS.items()
        },
        "corpora": {
            id: {
                **_entry(kind, kind.Config, kind=kind.kind, synthetic=kind.synthetic),
                "description": kind.description,
            }
            for id, kind in CORPORA.items()
        },
    }
    registries: Mapping[str, Mapping[str, Any]] = {
        "objectives": OBJECTIVES,
        "detectors": DETECTORS,
        "initialisers": INITIALISERS,
        "acceptors": ACCEPTORS,
    }
    for name, registry in registries.items():
        options[name] = {id: _entry(kind, kind.Config) for id, kind in registry.items()}
    return {"schema": run_schema(), "options": options}


def _entry(entry: Any, config: type[Config], **more: Any) -> dict[str, Any]:
    """An entry of a registry: its options, its rule in one line and its source where it has them, its docstring."""
    said = {name: getattr(entry, name) for name in ("rule", "source") if isinstance(getattr(entry, name, None), str)}
    return {"schema": schema(config), "description": inspect.getdoc(entry) or "", **said, **more}
