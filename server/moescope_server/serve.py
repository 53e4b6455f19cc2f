"""`moescope serve`: one server over one home."""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType

import uvicorn

from moescope.errors import InputError
from moescope.store import Store, default_home
from moescope_server.app import create_app
from moescope_server.hub import EventHub
from moescope_server.lock import sole_owner
from moescope_server.settings import LOOPBACK_NAMES, Settings

DEFAULT_PORT = 7400

_WILDCARDS = frozenset({"0.0.0.0", "::", ""})


class Server(uvicorn.Server):
    """Ends the event streams before it waits for open connections to close."""

    def __init__(self, config: uvicorn.Config, hub: EventHub) -> None:
        super().__init__(config)
        self.hub = hub

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.hub.close()
        await super().shutdown(sockets)


def serve(*, host: str, port: int | None, home: Path | None, browser: bool, settings: Settings | None = None) -> None:
    """Serve until interrupted. Raises `InputError` if the home or the address cannot be had."""
    store = Store(home or default_home())
    signal.signal(
        signal.SIGTERM, _interrupt
    )  # uvicorn hands the signal on when it has shut down: here it ends properly
    with suppress(KeyboardInterrupt), sole_owner(store) as lock:
        settings = settings or (Settings(token=lock.token) if lock.token else Settings())
        with _listen(host, port, lock.port) as listener:
            store.clear_remains()
            settings = replace(settings, hosts=allowed_hosts(host))
            app = create_app(store, settings)
            number = listener.getsockname()[1]
            lock.note(number, settings.token)
            _tell(host, number, settings.token, browser)
            config = uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=5,
                lifespan="on",
            )
            try:
                Server(config, app.state.services.hub).run([listener])
            finally:
                _say_what_goes_on(store)
    store.close()


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _tell(host: str, port: int, token: str, browser: bool) -> None:
    address = f"http://{_shown_host(host)}:{port}/?token={token}"
    if host.lower() not in LOOPBACK_NAMES and host != "::1":
        print(
            f"Warning: listening on {host or 'every address'}, not only on this machine: whoever has the address "
            "above can read everything here, and the traffic is not encrypted.",
            file=sys.stderr,
        )
    print(f"moescope is at {address}", flush=True)
    if browser and _has_desktop():
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()


def allowed_hosts(host: str) -> frozenset[str]:
    """Names that the Host header may hold when listening on `host`: never a name that an attacker could own."""
    if host in _WILDCARDS:
        return LOOPBACK_NAMES | {"*", socket.gethostname().lower(), socket.getfqdn().lower()}
    return LOOPBACK_NAMES | {f"[{host.lower()}]" if ":" in host else host.lower()}


def _shown_host(host: str) -> str:
    if host in _WILDCARDS:
        return "localhost"
    return f"[{host}]" if ":" in host else host


@contextmanager
def _listen(host: str, port: int | None, last: int | None = None) -> Iterator[socket.socket]:
    """A listening socket. Without a port: the one of a server that was killed, else the usual, else a free one."""
    wanted = (last or DEFAULT_PORT) if port is None else port
    try:
        family = socket.getaddrinfo(host or None, wanted, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
    except (socket.gaierror, OverflowError):
        raise InputError(f"{host!r} is not an address of this machine.") from None
    # Naming TCP matters: asyncio turns Nagle off only then, and each small answer would wait 40 ms for an ACK.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, wanted))
            listener.listen(128)
        except OSError as error:
            if port is not None or error.errno != errno.EADDRINUSE:
                raise InputError(f"{host}:{wanted} cannot be listened on: {error.strerror}.") from None
            listener.bind((host, 0))
            listener.listen(128)
        yield listener


def _has_desktop() -> bool:
    if sys.platform in ("darwin", "win32"):
        return "SSH_CONNECTION" not in os.environ
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _say_what_goes_on(store: Store) -> None:
    running = store.jobs(status="running")
    if running:
        names = ", ".join(f"{row.kind} (process {row.pid})" for row in running)
        print(f"Still at work: {names}. The next `moescope serve` takes over.", file=sys.stderr)
