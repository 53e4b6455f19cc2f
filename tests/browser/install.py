"""Make sure that a Chromium is there for the browser tests: `python tests/browser/install.py`, run by `make test`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from browser.chromium import find_chromium


def main() -> int:
    found = find_chromium()
    if found:
        print(f"browser tests: {found}")
        return 0
    for command in ways():
        print(f"browser tests: no Chromium here, so: {' '.join(command)}", flush=True)
        done = subprocess.run(command, env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"})
        if done.returncode == 0 and (found := find_chromium()):
            print(f"browser tests: {found}")
            return 0
    strict = os.environ.get("CI", "").lower() == "true"
    end = "and CI=true wants it." if strict else "so the browser tests will be skipped."
    print(f"browser tests: Chromium could not be installed, {end}", file=sys.stderr)
    return 1 if strict else 0


def ways() -> list[list[str]]:
    """What to try, in order: Debian's package as root, then playwright's own download."""
    own = [sys.executable, "-m", "playwright", "install", "chromium"]
    if os.name == "posix" and os.geteuid() == 0 and shutil.which("apt-get"):
        return [["sh", "-c", "apt-get -q update && apt-get -q install -y --no-install-recommends chromium"], own]
    return [own]


if __name__ == "__main__":
    sys.exit(main())
