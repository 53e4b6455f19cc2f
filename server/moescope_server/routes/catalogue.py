"""What there is to choose from: presets of training runs, sources of data, measures."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from moescope_server.forms import form_schema
from moescope_server.wire import JSON

router = APIRouter()


@router.get("/presets")
def presets() -> Response:
    from moescope.train.preset import presets as bundled

    return JSON(list(bundled().values()))


@router.get("/schema/run")
def run_schema() -> Response:
    """What the form of a new run is made from."""
    return JSON(form_schema())


@router.get("/sources")
def sources() -> Response:
    from moescope.config import schema
    from moescope.data import CORPORA

    def described(id: str) -> dict[str, Any]:
        corpus = CORPORA[id]
        return {
            "id": id,
            "description": corpus.description,
            "kind": corpus.kind,
            "synthetic": corpus.synthetic,
            "schema": schema(corpus.Config),
        }

    return JSON([described(id) for id in CORPORA])


@router.get("/metrics")
def metrics() -> Response:
    from moescope.metrics import METRICS

    names = ("name", "title", "definition", "null", "caveat", "unit", "tensor", "source", "tail")
    return JSON([{name: getattr(metric, name) for name in names} for metric in METRICS.values()])
