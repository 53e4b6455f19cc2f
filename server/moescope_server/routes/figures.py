"""Figures of a trace, as plotly JSON."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response

from moescope.errors import InputError
from moescope.store import NotFoundError
from moescope_server.analysis import accepted, figure_function, parameters
from moescope_server.deps import Id, ServicesDep
from moescope_server.routes.sweeps import SWEEP_FIGURES
from moescope_server.run_figures import RUN_FIGURES
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
    method: Literal["pca", "umap"] = "pca",
    max_points: Annotated[int | None, Query(ge=1, le=1_000_000)] = None,
) -> Response:
    """One figure; 202 and the job's id while the projection it needs is computed."""
    function = figure_function(name)
    if name in RUN_FIGURES:
        raise NotFoundError(f"The figure {name!r} is drawn from a run, not from a trace.")
    if name in SWEEP_FIGURES:
        raise NotFoundError(f"The figure {name!r} is drawn from a sweep, not from a trace.")
    opened = all.traces.open(all.store.trace(id))
    options = accepted(function, {"layer": layer, "color": color, "label": label, "max_points": max_points})
    if "layer" in parameters(function):
        options["layer"] = opened.layer(layer)
    missing = [name for name, parameter in parameters(function).items() if parameter.default is parameter.empty]
    for name_of in missing[1:]:  # the first is the trace
        if name_of not in options:
            raise InputError(f"The figure {name!r} needs the option {name_of!r}.")
    extra: dict[str, Any] = {}
    if "projection" in parameters(function):
        extra["projection"] = all.analysis.projected(opened, options["layer"], method)
        if extra["projection"] is None:
            spec = {"trace": id, "layer": options["layer"], "method": method}
            return JSON({"job": all.jobs.submit_once("project", spec).id}, 202)
    if "measurements" in parameters(function):
        extra["measurements"] = all.analysis.mutual_information(opened)
    key = (opened.stamp, name, method, tuple(sorted(options.items())))
    return JSON(all.analysis.figure(key, lambda: function(opened.trace, **options, **extra)))
