"""Jobs: what is being done, and a way to stop it."""

from __future__ import annotations

from fastapi import APIRouter

from moescope_server.deps import Id, JobsDep, StoreDep
from moescope_server.schemas import JobPublic

router = APIRouter(prefix="/jobs")


@router.get("")
def list_jobs(store: StoreDep, active: bool = False) -> list[JobPublic]:
    """The latest jobs, oldest first."""
    rows = store.jobs(status=["queued", "running"]) if active else store.jobs()
    return [JobPublic.model_validate(row) for row in rows[-200:]]


@router.get("/{id}")
def one_job(id: Id, store: StoreDep) -> JobPublic:
    return JobPublic.model_validate(store.job(id))


@router.post("/{id}/cancel")
def cancel_job(id: Id, jobs: JobsDep) -> JobPublic:
    return JobPublic.model_validate(jobs.cancel(id))
