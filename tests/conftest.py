"""Shared by every test: one torch thread, temporary homes, a made-up trace."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A fresh home folder; no test touches the user's."""
    path = tmp_path / "home"
    path.mkdir()
    return path
