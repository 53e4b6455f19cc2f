"""Kill a server again and again under many readers: `python tests/server/kill_server.py --kills 10 --readers 20`.

A real server (`moescope_server.serve`, in a process of its own) over a home into which another process writes some 150
events a second all the while. Each reader reads the stream as a browser does, and when it breaks asks again with the id
it heard last. At the end every reader must have the complete list of events, in order, none twice.
"""

from __future__ import annotations

import argparse
import functools
import http.client
import random
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from moescope.store import Store

TOKEN = "a-token-that-every-start-of-this-server-has-again"

SERVER = textwrap.dedent("""
    import sys
    from pathlib import Path
    from moescope_server.serve import serve
    from moescope_server.settings import Settings
    settings = Settings(token=sys.argv[3], run_jobs=False)
    serve(host="127.0.0.1", port=int(sys.argv[2]), home=Path(sys.argv[1]), browser=False, settings=settings)
""")

WRITER = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    from moescope.events import Event
    from moescope.store import Store
    store, step = Store(Path(sys.argv[1]), samples=Path(sys.argv[1])), 0
    run = store.add_run("A run", "made-up", {})
    store.append(Event(run=run.id, step=0, kind="run_started", payload={}))
    while not Path(sys.argv[2]).exists():
        step += 1
        made = [Event(run=run.id, step=step, kind=kind, payload={"loss": 1 / step}) for kind in ("train", "load")]
        store.append_many(made)
        time.sleep(0.01)
    store.append(Event(run=run.id, step=step, kind="run_finished", payload={}))
""")


@dataclass(eq=False)
class Reader(threading.Thread):
    """One browser: what it heard, how often it had to ask again, and whether it heard the end."""

    port: int
    heard: list[int] = field(default_factory=list)
    asked: int = 0
    finished: bool = False
    give_up: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    def run(self) -> None:
        while not self.finished and not self.give_up.is_set():
            with suppress(OSError, http.client.HTTPException):
                self._follow()
            time.sleep(0.02)

    def _follow(self) -> None:
        """Read until the connection breaks; what came incomplete is not heard."""
        place = {"Last-Event-ID": str(self.heard[-1])} if self.heard else {}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("GET", "/api/events?after=0", headers={"Authorization": f"Bearer {TOKEN}", **place})
            answer = connection.getresponse()
            if answer.status != 200:
                return
            self.asked += 1
            fields: dict[str, str] = {}
            for raw in answer:
                line = raw.decode()
                if not line.endswith("\n"):
                    return
                name, _, value = line.rstrip("\n").partition(": ")
                if name:
                    fields[name] = value
                    continue
                if fields.get("event", "ready") != "ready":
                    self.heard.append(int(fields["id"]))
                    if fields["event"] == "run_finished":
                        self.finished = True
                        return
                fields = {}
        finally:
            connection.close()


@dataclass
class Outcome:
    """events: ids in the log, in order. readers: what each heard. cold: seconds from a start to the first answer."""

    events: list[int]
    readers: list[Reader]
    cold: list[float]

    @property
    def complete(self) -> int:
        """How many readers have exactly the log."""
        return sum(reader.heard == self.events for reader in self.readers)


def trial(home: Path, kills: int, readers: int, between: float = 0.6) -> Outcome:
    """Write, read and kill; then let the run finish and everybody read to its end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flag = home / "enough"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(home), str(flag)])
    store = Store(home, samples=home)
    cold: list[float] = []
    browsers = [Reader(port) for _ in range(readers)]
    server = _start(home, port, cold)
    try:
        for browser in browsers:
            browser.start()
        for _ in range(kills):
            last = store.last_event_id()
            _until(functools.partial(_all_heard, browsers, last))
            time.sleep(random.uniform(0, between))
            server.kill()
            server.wait()
            server = _start(home, port, cold)
        flag.touch()
        writer.wait(30)
        for browser in browsers:
            browser.join(60)
        return Outcome([event.id for event in store.events_after(0)], browsers, cold)
    finally:
        flag.touch()
        for browser in browsers:
            browser.give_up.set()
        server.kill()
        server.wait()
        writer.wait(30)
        store.close()


def _all_heard(readers: list[Reader], event: int) -> bool:
    return all(reader.heard and reader.heard[-1] >= event for reader in readers)


def _until(what: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            raise TimeoutError("a reader heard nothing for a minute")
        time.sleep(0.01)


def _start(home: Path, port: int, cold: list[float]) -> subprocess.Popen[bytes]:
    began = time.monotonic()
    command = [sys.executable, "-c", SERVER, str(home), str(port), TOKEN]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def answers() -> bool:
        if process.poll() is not None:
            raise RuntimeError("the server ended by itself")
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        return False

    _until(answers)
    cold.append(time.monotonic() - began)
    return process


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--readers", type=int, default=20)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        found = trial(Path(folder), arguments.kills, arguments.readers)
        asked = sum(reader.asked for reader in found.readers)
        print(
            f"{arguments.kills} kills, {len(found.readers)} readers, {len(found.events)} events, {asked} connections: "
            f"{found.complete} readers have the complete ordered list ({time.monotonic() - began:.0f} s, "
            f"start to first answer {sorted(found.cold)[len(found.cold) // 2]:.1f} s)"
        )
        sys.exit(found.complete != len(found.readers))


if __name__ == "__main__":
    main()
