"""The page: static files, served as they are. They hold no data, so they need no token."""

from __future__ import annotations

import mimetypes
from pathlib import Path

from fastapi import FastAPI, Request
from starlette.responses import PlainTextResponse, Response
from starlette.staticfiles import StaticFiles

import moescope_server


def find_frontend() -> Path | None:
    """The page's folder in the checkout this runs from, else in the installed package, else None."""
    package = Path(moescope_server.__file__).resolve().parent
    for folder in (package.parents[1] / "frontend", package / "_frontend"):
        if folder.is_dir():
            return folder
    return None


def plotly_js() -> Path:
    """plotly.min.js as plotly's own wheel ships it."""
    import plotly

    return Path(plotly.__file__).parent / "package_data" / "plotly.min.js"


def add_frontend(app: FastAPI, folder: Path | None) -> None:
    """Serve the page below `/`, and plotly.min.js below `/vendor`."""
    mimetypes.add_type("text/javascript", ".js")  # some systems map it to text/plain, which nosniff would refuse
    mimetypes.add_type("text/javascript", ".mjs")

    vendor = StaticFiles(directory=plotly_js().parent)

    @app.get(f"/vendor/{plotly_js().name}", include_in_schema=False)
    async def plotly(request: Request) -> Response:
        return await vendor.get_response(plotly_js().name, request.scope)

    if folder is None or not (folder / "index.html").is_file():

        @app.get("/", include_in_schema=False)
        def no_page() -> Response:
            return PlainTextResponse("The page's files are missing from this installation.\n", 404)

        return
    app.mount("/", StaticFiles(directory=folder, html=True), name="page")
