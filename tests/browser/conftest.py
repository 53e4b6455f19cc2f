"""The page in a real Chromium, against a real server; a test fails on any error in the browser's console."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from browser.chromium import ARGUMENTS, find_chromium
from browser.serving import Served, made_up, serving


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server for all tests; whoever changes something makes it anew."""
    home = tmp_path_factory.mktemp("browser") / "home"
    home.mkdir()
    with serving(home, made_up()) as made:
        yield made
        said = made.log.read_text()
    assert "Traceback" not in said, said


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = find_chromium()
    if path is None:
        words = "there is no Chromium on this machine; `python tests/browser/install.py` installs it"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(words)
        pytest.skip(words)
    expect.set_options(timeout=30_000)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture
def expected() -> list[str]:
    """Patterns of console errors that a test provokes on purpose, such as the answer 400 to a bad upload."""
    return []


@pytest.fixture
def page(browser: Browser, served: Served, expected: list[str]) -> Iterator[Page]:
    """A fresh profile, signed in and still on an empty page. Console errors and uncaught errors fail the test."""
    context = browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme="light")
    made = context.new_page()
    made.set_default_timeout(30_000)
    errors: list[str] = []

    def heard(message: ConsoleMessage) -> None:
        if message.type == "error":
            errors.append(f"{message.text} ({message.location.get('url', '')})")

    made.on("console", heard)
    made.on("pageerror", lambda error: errors.append(f"{error}\n{error.stack}"))
    made.goto(f"{served.base}/favicon.svg?token={served.address.partition('token=')[2]}")
    yield made
    context.close()
    left = [error for error in errors if not any(re.search(pattern, error) for pattern in expected)]
    assert not left, left


@pytest.fixture(scope="session")
def text_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny language model of ours with random weights and a tokenizer of its own."""
    from moescope.data.base import Document
    from moescope.data.tokenizer import to_json, train_tokenizer
    from moescope.model import ModelConfig, Transformer
    from moescope.model.checkpoint import save_checkpoint

    words = "def f(x): return x + 1\nThe quick brown fox jumps over the lazy dog. " * 20
    tokenizer = train_tokenizer([Document(id="a", text=words)], 300)
    config = ModelConfig(vocab_size=300, max_seq=64, d_model=16, num_layers=2, num_heads=2, num_experts=4, d_expert=8)
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-text"
    save_checkpoint(folder, Transformer(config, seed=0), to_json(tokenizer), {"title": "Tiny text"})
    return folder
