"""What keeps the code easy to enter, checked: file sizes, and no path or name that exists on one machine only."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
LONGEST = {".py": 330, ".js": 280}
EXCEPTIONS: dict[str, str] = {}
"""Path to the reason why it may be longer."""


def tracked() -> list[Path]:
    """Files of the checkout that git tracks; outside git, the source files found on disk."""
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 0:
        return [ROOT / line for line in done.stdout.splitlines() if (ROOT / line).is_file()]
    folders = ("core", "server", "frontend", "tests", "benchmarks", "docs")
    return [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]


def test_no_source_file_is_too_long() -> None:
    sources = [
        path
        for path in tracked()
        if path.suffix in LONGEST and path.relative_to(ROOT).parts[0] in ("core", "server", "frontend")
    ]
    assert sources
    long = {
        str(path.relative_to(ROOT)): count
        for path in sources
        if (count := len(path.read_text().splitlines())) > LONGEST[path.suffix]
        and str(path.relative_to(ROOT)) not in EXCEPTIONS
    }
    assert not long, f"split these, or give a reason in EXCEPTIONS: {long}"


def test_no_text_names_a_path_of_one_machine() -> None:
    local = re.compile(r"/(?:root|work|Users/[a-z]+)/[a-z.]")
    named = [
        str(path.relative_to(ROOT))
        for path in tracked()
        if path.suffix in {".py", ".js", ".md", ".toml", ".html", ".css", ".yml", ".json", ".jsonl"}
        and local.search(path.read_text(errors="replace"))
    ]
    assert not [name for name in named if name != "tests/test_repository.py"]
