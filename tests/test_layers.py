"""The flow goes one way: the import-linter contract of pyproject.toml holds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_import_contracts_hold() -> None:
    tool = Path(sys.executable).with_name("lint-imports")
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'core'}{os.pathsep}{ROOT / 'server'}"}
    done = subprocess.run([tool, "--no-cache"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_importing_the_library_imports_neither_torch_nor_transformers() -> None:
    heavy = "torch transformers sklearn umap numba plotly pandas scipy"
    code = f"import sys, moescope, moescope_server.cli; print([m for m in {heavy.split()!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
