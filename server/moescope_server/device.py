"""What models will run on, found out in a child process: importing torch would cost this one seconds and memory."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

_PROBE = """
import torch
if torch.cuda.is_available():
    print(torch.cuda.get_device_name(0))
elif torch.backends.mps.is_available():
    print("Apple GPU")
"""

_lock = threading.Lock()
_found: list[str] = []


def describe_device() -> str | None:
    """The device's name, or None until `probe` has found it out."""
    return _found[0] if _found else None


def probe() -> None:
    """Find out, once per process. Takes the seconds that importing torch takes."""
    with _lock:
        if _found:
            return
        try:
            shown = subprocess.run(
                [sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=120, check=False
            )
            name = shown.stdout.strip()
        except subprocess.TimeoutExpired:
            name = ""
        _found.append(name or f"CPU, {os.cpu_count()} cores")
