"""Where the home folder is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from moescope.errors import InputError


def default_home(environment: Mapping[str, str] = os.environ) -> Path:
    """`MOESCOPE_HOME`, else `~/.moescope`. Raises `InputError` where there is no such user."""
    named = environment.get("MOESCOPE_HOME")
    return expanded(Path(named or "~/.moescope"))


def expanded(path: Path) -> Path:
    try:
        return path.expanduser().absolute()
    except RuntimeError:
        raise InputError(f"{path} is in the home folder of nobody who is known here.") from None
