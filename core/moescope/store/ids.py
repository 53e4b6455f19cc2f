"""Ids that are safe as a folder's name and in an address."""

from __future__ import annotations

import re
import secrets
import unicodedata
from datetime import UTC, datetime

_ID = re.compile(r"[a-z0-9-]{1,80}")


def slug(name: str) -> str:
    """`name` in lower-case ASCII letters, digits and single hyphens, at most 48 long; "unnamed" for nothing."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")[:48].strip("-") or "unnamed"


def new_id(name: str) -> str:
    return f"{slug(name)}-{secrets.token_hex(4)}"


def is_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def now() -> str:
    """The time as ISO 8601 in UTC, with microseconds so that rows sort by it."""
    return datetime.now(UTC).isoformat(timespec="microseconds")
