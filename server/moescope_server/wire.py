"""JSON as this server writes it. Decided once: NaN and infinity are null; numpy arrays are lists."""

from __future__ import annotations

from typing import Any

from fastapi import Response
from pydantic_core import to_json


def encode(value: Any) -> bytes:
    """JSON of plain values, dataclasses and numpy arrays."""
    return to_json(value, inf_nan_mode="null", fallback=_plain)


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # numpy arrays and scalars
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


class JSON(Response):
    """A JSON answer from values that need no checking, or from bytes that are JSON already."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return content if isinstance(content, bytes) else encode(content)
