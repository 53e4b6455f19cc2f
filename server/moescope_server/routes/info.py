"""What this server is."""

from __future__ import annotations

from fastapi import APIRouter

import moescope
from moescope_server.deps import ServicesDep
from moescope_server.device import describe_device
from moescope_server.schemas import InfoPublic

router = APIRouter()


@router.get("/info")
def info(all: ServicesDep) -> InfoPublic:
    return InfoPublic(
        version=moescope.__version__,
        home=str(all.store.home),
        device=describe_device(),
        samples=str(all.store.samples) if all.store.samples else None,
        max_upload=all.settings.max_upload,
    )
