"""Keep freed memory instead of handing it back: the gradients of many experts are allocated anew every step."""

from __future__ import annotations

import ctypes
import sys
from typing import Final

_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
_LARGE: Final = 1 << 30


def keep_freed_memory() -> bool:
    """Tell glibc to serve large tensors from its heap and not to trim it; whether it took the setting.

    It holds for the whole process, so a process that trains calls it, and the library never does by itself. Elsewhere
    than on glibc nothing happens. What it saves: docs/performance.md.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGE)) and bool(mallopt(_TRIM_THRESHOLD, _LARGE))
