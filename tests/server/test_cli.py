"""The command line: results on stdout, one line on stderr and exit code 2 for bad input, JSON where asked."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import moescope
from moescope.store import Store
from moescope.trace.io import read_trace, write_trace
from moescope_server import cli
from moescope_server.serve import _listen
from synthetic import make_trace

MOESCOPE = (sys.executable, "-m", "moescope_server")
Call = Callable[..., tuple[int, str, str]]


def shell(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*MOESCOPE, *map(str, arguments)], capture_output=True, text=True, env=os.environ | environment, timeout=120
    )


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """The command line in this process, where torch is imported already: (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["moescope", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        output = capsys.readouterr()
        return int(end.value.code or 0), output.out, output.err

    return run


@pytest.fixture
def trace_file(tmp_path: Path) -> Path:
    path = tmp_path / "made.safetensors"
    write_trace(make_trace(tokens=600, docs=6), path)
    return path


def test_help_and_version(call: Call) -> None:
    code, out, err = call("--help")
    assert (code, err) == (0, "")
    for command in ("serve", "train", "trace", "metrics", "info"):
        assert command in out
        assert call(command, "--help")[0] == 0
    assert call() == (0, out, "")
    assert call("--version") == (0, f"moescope {moescope.__version__}\n", "")


def test_help_imports_nothing_heavy() -> None:
    code = """
import sys
from moescope_server import cli
sys.argv = ["moescope", "--help"]
try:
    cli.main()
except SystemExit:
    heavy = {"torch", "transformers", "sklearn", "numpy", "fastapi", "pydantic", "plotly", "sqlite3"}
    print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


BAD: list[tuple[list[str], str]] = [
    (["nope"], "No such command 'nope'"),
    (["--nope"], "No such option"),
    (["trace"], "Missing"),
    (["trace", "/no/such", "--data", "digits", "--out", "x.safetensors"], "neither a folder here nor a checkpoint"),
    (["trace", ".", "--data", "digits", "--out", "/no/such/folder/x"], "cannot|not a file that can be written"),
    (["trace", ".", "--data", "digits", "--out", "x", "--tokens", "0"], "--tokens"),
    (["trace", ".", "--data", "", "--out", "x"], "--data names no data"),
    (["trace", ".", "--data", "digits", "--out", "PIPE"], "not a file that can be written"),
    (["trace", ".", "--data", "digits", "--out", "x" * 300], "too long|longer than"),
    (["trace", ".", "--data", "digits", "--out", "x" * 240], "longer than"),
    (["trace", "x" * 300, "--data", "digits", "--out", "x"], "too long"),
    (["metrics", "x" * 300], "too long"),
    (["train", "x" * 300], "too long"),
    (["info", "--home", "~nobody-at-all/x"], "home folder of nobody"),
    (["info", "--home", "NODATABASE"], "cannot be used as moescope's database"),
    (["metrics", "/no/such.safetensors"], "neither a file here nor a trace"),
    (["metrics", "PYPROJECT"], "header"),
    (["train"], "Give a preset"),
    (["train", "a", "--resume", "b"], "There is no run"),
    (["train", "no-such-preset"], "neither a preset"),
    (["train", "clusters", "--set", "optim.lr"], "write key=value"),
    (["train", "--resume", "no-such-run"], "There is no run 'no-such-run'"),
    (["train", "--resume", "x", "--set", "a=1"], "resumed as it was"),
    (["train", "--resume", "x", "--fork", "y"], "give one of them"),
    (["train", "--fork", "nothing-there"], "no checkpoint and no run 'nothing-there'"),
    (["serve", "--port", "99999"], "--port"),
    (["serve", "--host", "no such host"], "is not an address"),
    (["serve", "--home", "PYPROJECT"], "cannot be used as the home folder"),
    (["info", "--home", "PYPROJECT"], "cannot be used as the home folder"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[" ".join(arguments)[:60] or "-" for arguments, _ in BAD])
def test_bad_input_is_one_line_and_exit_code_2(
    call: Call, home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], words: str
) -> None:
    monkeypatch.setenv("MOESCOPE_HOME", str(home))
    monkeypatch.chdir(tmp_path)
    stand_in = tmp_path / "pyproject.toml"
    stand_in.write_text("not what is wanted")
    (home / "odd" / "moescope.sqlite").mkdir(parents=True)
    os.mkfifo(home / "pipe")
    named = {"PYPROJECT": stand_in, "PIPE": home / "pipe", "NODATABASE": home / "odd"}
    code, out, err = call(*[str(named.get(argument, argument)) for argument in arguments])
    assert (code, out) == (2, ""), err
    assert err.startswith("moescope: ") and err.count("\n") == 1 and err.endswith("\n")
    assert any(word in err for word in words.split("|")), err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "pyproject.toml"]
    assert (home / "pipe").is_fifo()


def test_the_same_in_a_shell(home: Path) -> None:
    done = shell("metrics", "/no/such.safetensors", MOESCOPE_HOME=str(home))
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1
    assert shell("--version").stdout == f"moescope {moescope.__version__}\n"


def test_metrics_says_every_measure_of_every_layer(call: Call, home: Path, trace_file: Path) -> None:
    code, out, err = call("metrics", trace_file, "--json")
    assert (code, err) == (0, "")
    said = json.loads(out)
    from moescope.metrics import METRICS

    assert said["tokens"] == 600
    for layer in (0, 1, 2):
        found = [item for item in said["measurements"] if item["layer"] == layer]
        assert {item["metric"] for item in found} == set(METRICS)
        assert all({"value", "null", "n"} <= set(item) for item in found)
    code, out, err = call("metrics", trace_file)
    assert (code, err) == (0, "") and "mutual_information (domain)" in out


def test_metrics_takes_a_trace_of_the_home_by_its_id(call: Call, home: Path, tmp_path: Path, trace_file: Path) -> None:
    store = Store(home, samples=tmp_path)
    row = store.add_trace(trace_file, "Mine", "recorded")
    store.close()
    code, out, _ = call("metrics", row.id, "--home", home, "--json")
    assert code == 0 and json.loads(out)["trace"] == str(trace_file)


def test_trace_writes_a_trace_and_says_what_is_in_it(call: Call, checkpoint: Path, tmp_path: Path) -> None:
    out_file = tmp_path / "t.safetensors"
    code, out, err = call("trace", checkpoint, "--data", "digits", "--tokens", 320, "--out", out_file, "--json")
    assert (code, err) == (0, ""), err
    said, made = json.loads(out), read_trace(out_file)
    assert said["tokens"] == made.num_tokens <= 320 and said["experts"] == [4, 4]
    assert [layer["layer"] for layer in said["layers"]] == list(made.layer_ids)
    assert said["self_check"]["passed"] is True and said["self_check"]["checks"]
    assert list(tmp_path.glob(".*")) == []
    code, out, _ = call("trace", checkpoint, "--data", "digits", "--tokens", 320, "--out", out_file)
    assert code == 0 and "self-check passed" in out and str(out_file) in out
    before = out_file.read_bytes()
    code, out, err = call("trace", checkpoint, "--data", "clusters", "--out", out_file)
    assert (code, out) == (2, "") and "reads patches" in err and out_file.read_bytes() == before


SMALL = ["--set", "data.tokens=2000", "--set", "optim.batch=16", "--set", "optim.warmup=2", "--set", "probe.tokens=200"]


def test_train_runs_in_the_foreground_and_the_home_knows_of_it(call: Call, home: Path, tmp_path: Path) -> None:
    code, out, err = call(
        "train", "clusters", "--set", "optim.steps=30", *SMALL, "--name", "Mine", "--home", home, "--json"
    )
    assert (code, err) == (0, ""), err
    said = json.loads(out)
    store = Store(home, samples=tmp_path)
    (run,) = store.runs()
    assert (said["run"], said["finished"], said["step"]) == (run.id, True, 30)
    assert (run.name, run.status, run.step, run.steps) == ("Mine", "finished", 30, 30)
    (job,) = store.jobs()
    assert (job.kind, job.status, job.id) == ("train", "done", run.job)
    assert [trace.run for trace in store.traces()] == [run.id] * 3
    kinds = [event.kind for event in store.events_after(0, run.id)]
    assert kinds[0] == "run_started" and kinds[-1] == "run_finished" and kinds.count("train") == 30
    store.close()
    code, out, err = call("train", "--resume", run.id, "--home", home)
    assert code == 2 and "is finished" in err


def test_a_fork_goes_on_from_the_other_runs_weights_as_a_run_of_its_own(call: Call, home: Path, tmp_path: Path) -> None:
    code, out, err = call("train", "clusters", "--set", "optim.steps=20", *SMALL, "--home", home, "--json")
    assert code == 0, err
    first = json.loads(out)["run"]
    code, out, err = call("train", "--fork", first, "--home", home)
    assert (code, out) == (2, "") and "optim.steps" in err
    code, out, err = call(
        "train", "--fork", first, "--set", "optim.steps=30", "--set", "optim.lr=1e-5", "--home", home, "--json"
    )
    assert (code, err) == (0, ""), err
    said = json.loads(out)
    store = Store(home, samples=tmp_path)
    run = store.run(said["run"])
    assert (said["step"], run.config["optim"]["lr"], run.config["data"]["tokens"]) == (30, 1e-5, 2000)
    assert run.fork == {"run": first, "checkpoint": f"{first}-c20", "step": 20} and run.name.endswith(", from step 20")
    assert [event.step for event in store.events_after(0, run.id, ["train"])] == list(range(21, 31))
    before, after = (store.events_after(0, id, ["eval"]) for id in (first, run.id))
    assert after[0].payload["loss"] == pytest.approx(before[-1].payload["loss"], abs=1e-4)
    store.close()


def test_a_run_that_was_killed_outright_goes_on_exactly_without_a_server(
    home: Path, tmp_path: Path, call: Call
) -> None:
    often = ["--set", "optim.steps=400", "--set", "snapshot_every=0", "--set", "checkpoint_every=10", *SMALL]
    often += ["--set", "threads=1"]  # `call` may share this process, whose number of threads the tests set
    process = subprocess.Popen([*MOESCOPE, "train", "clusters", *often, "--home", str(home)], stderr=subprocess.DEVNULL)
    store = Store(home, samples=tmp_path)
    deadline = time.monotonic() + 100
    while not store.events_after(0, kinds=["checkpoint"], limit=1):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    (run,) = store.runs()
    assert run.status == "running"  # nobody could say otherwise
    code, _, err = call("train", "--resume", run.id, "--home", home)
    assert code == 0, err
    assert [job.status for job in store.jobs()] == ["failed", "done"] and store.run(run.id).status == "finished"
    code, out, err = call("train", "clusters", *often, "--home", home, "--json")
    assert code == 0, err
    losses = [
        {event.step: event.payload["loss"] for event in store.events_after(0, id, ["train"])}
        for id in (run.id, json.loads(out)["run"])
    ]
    assert len(losses[1]) == 400 and losses[0] == losses[1]
    store.close()


def test_ctrl_c_stops_training_with_a_checkpoint_and_it_goes_on_from_there(
    home: Path, tmp_path: Path, call: Call
) -> None:
    settings = ["--set", "optim.steps=1000000", "--set", "snapshot_every=0", *SMALL]
    process = subprocess.Popen(
        [*MOESCOPE, "train", "clusters", *settings, "--home", str(home)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    store = Store(home, samples=tmp_path)
    deadline = time.monotonic() + 100
    while not store.events_after(0, kinds=["train"], limit=1):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "stopped at step" in out
    (run,) = store.runs()
    assert run.status == "stopped" and f"moescope train --resume {run.id}" in err
    assert store.jobs()[0].status == "cancelled"
    assert store.events_after(0, run.id)[-1].kind == "run_stopped"
    store.close()


def test_info_says_where_everything_is(call: Call, home: Path) -> None:
    code, out, _ = call("info", "--home", home, "--json")
    said = json.loads(out)
    assert code == 0 and said["home"] == str(home) and said["version"] == moescope.__version__
    assert {"device", "packages", "checkpoints", "traces", "runs"} <= set(said)


def serving(home: Path, *options: str) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [*MOESCOPE, "serve", "--home", str(home), "--no-browser", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"http://\S+\?token=\S+", line)
    assert found, (line, process.communicate())
    return process, found[0]


def get(address: str, token: str) -> Any:
    request = urllib.request.Request(address, headers={"authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def test_serve_prints_its_address_serves_and_stops(home: Path) -> None:
    process, address = serving(home, "--port", "0")
    base, token = address.split("/?token=")
    assert len(token) >= 32 and base.startswith("http://127.0.0.1:")
    assert get(f"{base}/api/info", token)["home"] == str(home)
    taken = shell("serve", "--home", home.with_name("other"), "--no-browser", "--port", base.rpartition(":")[2])
    assert taken.returncode == 2 and "cannot be listened on" in taken.stderr and taken.stderr.count("\n") == 1
    second = shell("serve", "--home", home, "--no-browser", "--port", "0")
    assert second.returncode == 2 and f"already served by process {process.pid}" in second.stderr
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "", "")
    again, other = serving(home, "--port", "0")
    assert other.split("=")[1] != token
    again.terminate()
    again.communicate(timeout=30)


def test_serve_takes_a_free_port_if_its_own_is_taken_and_warns_beyond_loopback(home: Path) -> None:
    with socket.socket() as blocker:
        blocker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            blocker.bind(("127.0.0.1", 7400))
            blocker.listen()
        except OSError:
            pass  # someone else holds it, which does as well
        process, address = serving(home)
        assert not address.startswith("http://127.0.0.1:7400/")
        process.terminate()
        assert process.communicate(timeout=30)[1] == ""
    process, address = serving(home, "--host", "0.0.0.0", "--port", "0")
    process.terminate()
    assert "Warning: listening on 0.0.0.0" in process.communicate(timeout=30)[1]
    assert address.startswith("http://localhost:")


def test_small_answers_do_not_wait_for_an_acknowledgement() -> None:
    """asyncio turns Nagle's algorithm off only for sockets that say they are TCP: else each answer takes 40 ms."""
    with _listen("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP


def test_a_server_killed_outright_takes_no_run_with_it(home: Path, tmp_path: Path) -> None:
    process, address = serving(home, "--port", "0")
    base, token = address.split("/?token=")
    settings = {"optim.steps": 1_000_000, "snapshot_every": 0, "data.tokens": 2000, "optim.batch": 16}
    body = json.dumps({"preset": "clusters", "set": settings}).encode()
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(f"{base}/api/runs", body, headers), timeout=60) as answer:
        run = json.load(answer)["run"]
    store = Store(home, samples=tmp_path)

    def step_after(step: int) -> int:
        deadline = time.monotonic() + 100
        while store.run(run).step <= step:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return store.run(run).step

    step_after(0)
    process.kill()
    process.communicate()
    step = step_after(store.run(run).step)
    process, address = serving(home, "--port", "0")
    base, token = address.split("/?token=")
    step_after(step)
    headers = {"authorization": f"Bearer {token}"}
    urllib.request.urlopen(urllib.request.Request(f"{base}/api/runs/{run}/stop", b"", headers), timeout=30).close()
    deadline = time.monotonic() + 60
    while store.run(run).status != "stopped":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert store.events_after(0, run)[-1].kind == "run_stopped"
    process.terminate()
    process.communicate(timeout=30)
    store.close()


def test_a_database_that_cannot_be_written_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A full disk comes as SQLite's own error, which is no OSError."""
    from moescope_server import cli

    def full(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(cli, "app", full)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "moescope: the home folder's moescope.sqlite: database or disk is full\n"
