"""Figures of a trace, as plotly JSON."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response

from moescope_server.analysis import accepted, figure_function
from moescope_server.deps import Id, ServicesDep
from moescope_server.wire import JSON

router = APIRouter(prefix="/traces/{id}/figures")


@router.get("/{name}")
def figure(
    id: Id,
    name: str,
    all: ServicesDep,
    layer: int | None = None,
    color: Annotated[str | None, Query(max_length=200)] = None,
    label: Annotated[str | None, Query(max_length=200)] = None,
    method: Literal["pca", "umap"] | None = None,
    max_points: Annotated[int | None, Query(ge=1, le=1_000_000)] = None,
) -> Response:
    function = figure_function(name)
    opened = all.traces.open(all.store.trace(id))
    options = {"layer": layer, "color": color, "label": label, "method": method, "max_points": max_points}
    options = accepted(function, options)
    key = (opened.stamp, name, tuple(sorted(options.items())))
    return JSON(all.analysis.figure(key, lambda: function(opened.trace, **options)))
