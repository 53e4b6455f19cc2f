"""`moescope serve`: one server over one home."""

from __future__ import annotations

import socket
from pathlib import Path

import uvicorn
from moescope.store import Store, default_home

from moescope_server.app import create_app
from moescope_server.settings import Settings

DEFAULT_PORT = 7400


class Server(uvicorn.Server):
    """Ends the event streams before it waits for open connections."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.config.loaded_app  # noqa: B018
        await super().shutdown(sockets)


def serve(*, host: str, port: int | None, home: Path | None, browser: bool) -> None:
    store = Store(home or default_home())
    settings = Settings()
    listener = _listen(host, port)
    number = listener.getsockname()[1]
    app = create_app(store, settings)
    print(f"http://{host}:{number}/?token={settings.token}", flush=True)
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=3)
    uvicorn.Server(config).run([listener])


def _listen(host: str, port: int | None) -> socket.socket:
    listener = socket.socket(socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port or DEFAULT_PORT))
    return listener
