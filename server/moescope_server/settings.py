"""What one server was started with. Made by the caller; there is no settings object at import time."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})

MEBI = 1 << 20
GIBI = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of one server.

    token:       needed by every API route; new for every start unless given.
    hosts:       names that the Host header may hold, in lower case; `"*"` stands for every IP address.
    max_json:    largest body of an ordinary request, in bytes.
    max_upload:  largest upload, in bytes, as sent and again as expanded.
    frontend:    folder of the page; None finds the one of this installation.
    run_jobs:    whether this server starts and watches jobs.
    poll:        seconds between looks at the event log.
    """

    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    hosts: frozenset[str] = LOOPBACK_NAMES
    max_json: int = MEBI
    max_upload: int = 16 * GIBI
    frontend: Path | None = None
    run_jobs: bool = True
    poll: float = 0.04
