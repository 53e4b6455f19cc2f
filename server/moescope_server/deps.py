"""What a route may ask for, by type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Path, Request

from moescope.store import Store
from moescope_server.analysis import Analysis
from moescope_server.hub import EventHub
from moescope_server.jobs import JobRunner
from moescope_server.settings import Settings
from moescope_server.traces import OpenTrace, TraceCache


@dataclass(frozen=True)
class Services:
    """Everything that the routes of one app share."""

    store: Store
    settings: Settings
    hub: EventHub
    traces: TraceCache
    analysis: Analysis
    jobs: JobRunner


def services(request: Request) -> Services:
    return cast(Services, request.app.state.services)


ServicesDep = Annotated[Services, Depends(services)]


def _store(all: ServicesDep) -> Store:
    return all.store


def _jobs(all: ServicesDep) -> JobRunner:
    return all.jobs


def _analysis(all: ServicesDep) -> Analysis:
    return all.analysis


StoreDep = Annotated[Store, Depends(_store)]
JobsDep = Annotated[JobRunner, Depends(_jobs)]
AnalysisDep = Annotated[Analysis, Depends(_analysis)]
Id = Annotated[str, Path(pattern=r"^[a-z0-9-]{1,80}$")]


def _opened(id: Id, all: ServicesDep) -> OpenTrace:
    return all.traces.open(all.store.trace(id))


TraceDep = Annotated[OpenTrace, Depends(_opened)]
"""The trace that `{id}` in the address names, open."""
