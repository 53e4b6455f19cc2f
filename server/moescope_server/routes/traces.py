"""Traces: what they are, their text, their documents, their experts."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from moescope_server.deps import AnalysisDep, Id, JobsDep, ServicesDep, StoreDep, TraceDep
from moescope_server.schemas import JobStarted, TraceCreate, TraceDetailPublic, TracePublic
from moescope_server.traces import image_png
from moescope_server.wire import JSON

router = APIRouter(prefix="/traces")


@router.get("")
def list_traces(store: StoreDep) -> list[TracePublic]:
    """Every trace, without the names of its documents."""
    rows = [TracePublic.model_validate(row) for row in store.traces()]
    return [row.model_copy(update={"data": {**row.data, "documents": None}}) for row in rows]


@router.post("", status_code=202)
def create_trace(body: TraceCreate, store: StoreDep, jobs: JobsDep) -> JobStarted:
    store.checkpoint(body.checkpoint)
    return JobStarted(job=jobs.submit("trace", body.model_dump()).id)


@router.get("/{id}")
def one_trace(id: Id, all: ServicesDep) -> TraceDetailPublic:
    row = all.store.trace(id)
    opened = all.traces.open(row)
    return TraceDetailPublic.model_validate(
        {**TracePublic.model_validate(row).model_dump(), **all.analysis.overview(opened)}
    )


@router.delete("/{id}", status_code=204)
def delete_trace(id: Id, store: StoreDep) -> None:
    store.delete_trace(id)


@router.get("/{id}/metrics")
def metrics(opened: TraceDep, analysis: AnalysisDep, layer: int | None = None) -> Response:
    measured = analysis.measurements(opened)
    if layer is not None:
        layer = opened.layer(layer)
        measured = [item for item in measured if item["layer"] == layer]
    return JSON(measured)


@router.get("/{id}/tokens")
def tokens(
    opened: TraceDep,
    layer: int | None = None,
    start: Annotated[int, Query(ge=0)] = 0,
    count: Annotated[int, Query(ge=1, le=5000)] = 1000,
) -> Response:
    from moescope.figures.cards import token_window

    return JSON(token_window(opened.trace, opened.layer(layer), start, count))


@router.get("/{id}/documents")
def all_documents(opened: TraceDep) -> Response:
    from moescope.figures.cards import documents

    return JSON(documents(opened.trace))


@router.get("/{id}/experts/{layer}/{expert}")
def expert(opened: TraceDep, analysis: AnalysisDep, layer: int, expert: int) -> Response:
    return JSON(analysis.expert(opened, layer, expert))


@router.get("/{id}/search")
def find(
    opened: TraceDep,
    q: Annotated[str, Query(max_length=1000)] = "",
    limit: Annotated[int, Query(ge=1, le=100_000)] = 1000,
) -> Response:
    from moescope.figures.cards import search

    return JSON(search(opened.trace, q, limit))


@router.get("/{id}/image/{doc}.png")
def image(opened: TraceDep, doc: int) -> Response:
    return Response(
        image_png(opened.trace, doc), media_type="image/png", headers={"cache-control": "private, max-age=3600"}
    )
