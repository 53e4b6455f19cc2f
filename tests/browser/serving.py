"""A real server in a process of its own, over a home filled with made-up traces."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from moescope.data.base import Labels
from moescope.store import Store
from moescope.trace.io import write_trace
from moescope.trace.schema import Trace
from synthetic import make_trace

START_SECONDS = 90
HOSTILE = '<img src=x onerror="window.pwned=1">'


@dataclass(frozen=True)
class Served:
    """address: with the token. traces: what was put in, name to id. home: the served folder."""

    address: str
    traces: dict[str, str]
    log: Path
    home: Path

    @property
    def base(self) -> str:
        return self.address.partition("/?")[0]

    def inspect(self, name: str, query: str = "") -> str:
        return f"{self.base}/#/inspect/{self.traces[name]}{query}"


def made_up() -> dict[str, Trace]:
    """One trace for each thing that a page must cope with."""
    plain = make_trace(tokens=3000, layers=4, experts=8, k=2)
    failed = ({"name": "gates", "passed": False, "detail": "gates differ from the model's by 0.3"},)
    return {
        "plain": plain,
        "wide": make_trace(tokens=3000, layers=3, experts=64, k=8),
        "long": make_trace(tokens=60_000, layers=2, experts=8, sample=8000, docs=60),
        "patches": patches(),
        "hostile": hostile(),
        "doubtful": replace(plain, meta=replace(plain.meta, self_check=failed)),
        "unlabelled": replace(plain, labels={}),
    }


def patches(images: int = 40, side: int = 4) -> Trace:
    """A trace over little images: `side` x `side` patches each, a class per image."""
    trace = make_trace(tokens=images * side * side, layers=2, experts=6, docs=images, sample=300)
    doc = np.repeat(np.arange(images, dtype=np.int32), side * side)
    pixels = np.random.default_rng(0).integers(0, 255, (images, 2 * side, 2 * side)).astype(np.uint8)
    return replace(
        trace,
        meta=replace(trace.meta, kind="patches"),
        doc=doc,
        position=np.tile(np.arange(side * side, dtype=np.int32), images),
        labels={"class": Labels((doc % 10).astype(np.int16), tuple("0123456789"), "document")},
        token_id=None,
        start=None,
        end=None,
        text=b"",
        images=pixels,
    )


def hostile() -> Trace:
    """Markup in every place where text of a stranger may stand."""
    trace = make_trace(tokens=400, layers=2, experts=4, docs=4, sample=100)
    word = HOSTILE.encode()
    ends = np.cumsum([len(word)] * 400).astype(np.int32)
    domain = trace.labels["domain"]
    return replace(
        trace,
        meta=replace(trace.meta, data={**trace.meta.data, "documents": [HOSTILE] * 4, "corpus": HOSTILE}),
        start=np.concatenate([[0], ends[:-1]]).astype(np.int32),
        end=ends,
        text=word * 400,
        labels={"domain": Labels(domain.codes, (HOSTILE, *domain.names[1:]), "document")},
    )


def fill(home: Path, traces: dict[str, Trace]) -> dict[str, str]:
    """Put traces into a home; name to id."""
    store = Store(home)
    ids = {}
    for name, trace in traces.items():
        id, path = store.new_trace_path(name)
        write_trace(trace, path)
        ids[name] = store.add_trace(path, HOSTILE if name == "hostile" else name, "recorded", id=id).id
    store.close()
    return ids


@contextmanager
def serving(home: Path, traces: dict[str, Trace]) -> Iterator[Served]:
    """`moescope serve` on a free port until the end of the block. Raises `RuntimeError` if it does not start."""
    ids = fill(home, traces)
    log = home.parent / "server.log"
    script = Path(sys.executable).with_name("moescope")
    command = [str(script), "serve", "--home", str(home), "--no-browser", "--port", "0"]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    try:
        yield Served(_address(process, log), ids, log, home)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        found = re.search(r"http://\S+\?token=\S+", log.read_text())
        if found:
            return found.group(0)
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise RuntimeError(f"the server did not start: {log.read_text()}")
