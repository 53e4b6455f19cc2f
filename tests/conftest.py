"""Shared by every test: one torch thread, temporary homes, a made-up trace."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The browser comes last: its event loop stays in the main thread, where no other may then be started."""
    items.sort(key=lambda item: item.get_closest_marker("browser") is not None)
