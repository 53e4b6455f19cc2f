"""An app over a home with made-up traces, and a real server on a loopback port."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI
from starlette.testclient import TestClient

from moescope.store import Store, TraceRow
from moescope.trace.io import write_trace
from moescope_server.app import create_app
from moescope_server.serve import Server
from moescope_server.settings import Settings
from synthetic import make_trace

BASE = "http://localhost:7400"


@pytest.fixture
def store(home: Path, tmp_path: Path) -> Iterator[Store]:
    (tmp_path / "samples").mkdir()
    made = Store(home, samples=tmp_path / "samples")
    yield made
    made.close()


@pytest.fixture
def settings() -> Settings:
    return Settings(run_jobs=False, poll=0.02)


@pytest.fixture
def app(store: Store, settings: Settings) -> FastAPI:
    return create_app(store, settings)


@pytest.fixture
def client(app: FastAPI, settings: Settings) -> Iterator[TestClient]:
    """A script that knows the token."""
    with TestClient(app, base_url=BASE, headers={"authorization": f"Bearer {settings.token}"}) as made:
        yield made


@pytest.fixture
def stranger(app: FastAPI) -> Iterator[TestClient]:
    """Someone who does not."""
    with TestClient(app, base_url=BASE, follow_redirects=False) as made:
        yield made


@pytest.fixture
def trace(store: Store) -> TraceRow:
    id, path = store.new_trace_path("Made up")
    write_trace(make_trace(tokens=1500, docs=12), path)
    return store.add_trace(path, "Made up", "recorded", id=id)


@dataclass
class Running:
    """A server in a thread."""

    address: str
    headers: dict[str, str]
    server: Server
    thread: threading.Thread

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(10)


@pytest.fixture
def running(app: FastAPI, settings: Settings) -> Iterator[Running]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=5)
        server = Server(config, app.state.services.hub)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        made = Running(address, {"authorization": f"Bearer {settings.token}"}, server, thread)
        yield made
        made.stop()
        assert not thread.is_alive(), "the server did not stop"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint of ours with random weights, that reads patches as `digits` has them."""
    from moescope.model import ModelConfig, Transformer
    from moescope.model.checkpoint import save_checkpoint

    config = ModelConfig(
        input="patches",
        head="class",
        causal=False,
        d_input=4,
        num_classes=10,
        max_seq=16,
        d_model=16,
        num_layers=2,
        num_heads=2,
        num_experts=4,
        d_expert=8,
    )
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-vit"
    save_checkpoint(folder, Transformer(config, seed=0), None, {"title": "Tiny"})
    return folder
