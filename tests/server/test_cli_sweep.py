"""`moescope sweep`: a table in the home folder, the same one after a kill or Ctrl-C, one sentence for bad input."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from moescope.sweep import State, state
from moescope.sweep.file import sweep_names
from moescope_server import cli

Call = Callable[..., tuple[int, str, str]]

FILE = """
title = "Made up"
seeds = [0, 1]
metrics = ["eval_loss", "maxvio"]

[base]
load_every = 0
eval_every = 0
snapshot_every = 0
checkpoint_every = 50
threads = 1
data = { spec = { corpus = "clusters", clusters = 4, dims = 4, tokens = 400 } }
optim = { steps = 6, batch = 8, warmup = 1 }
probe = { tokens = 60, sample = 0 }

[base.model]
input = "vectors"
head = "class"
causal = false
num_heads = 0
d_model = 8
num_layers = 1
d_expert = 8
num_experts = 4
max_seq = 1

[variants.two]
label = "top-2"
[variants.one]
model.router = "switch"

[[claims]]
metric = "eval_loss"
variant = "one"
against = "two"
direction = "higher"
paper = "nobody"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "made-up.toml"
    path.write_text(FILE)
    return path


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["moescope", "sweep", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        output = capsys.readouterr()
        return int(end.value.code or 0), output.out, output.err

    return run


def test_a_sweep_prints_its_table_and_keeps_it_in_the_home(call: Call, file: Path, home: Path) -> None:
    code, out, err = call(file, "--home", home)
    assert (code, err) == (0, ""), err
    folder = home / "sweeps" / "made-up"
    assert "maxvio (mean over MoE blocks), mean loads" in out and "minus top-2" in out and "[nobody]" in out
    assert "over 2 seeds: eval_loss of one minus top-2" in out and f"{folder}: 4 of 4 cells done" in out
    assert "one *" in out and "Note: one does not use the active parameters of top-2" in out
    before = (folder / "table.csv").read_bytes()
    code, out, _ = call(file, "--home", home, "--json")
    told = json.loads(out)
    assert code == 0 and told["folder"] == str(folder) and told == json.loads(out)
    assert {key: value for key, value in told.items() if key != "folder"} == json.loads(
        (folder / "summary.json").read_text()
    )
    assert (folder / "table.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no-such-sweep"], "neither a sweep"),
        (["FILE", "--seeds", "0,x"], "whole numbers"),
        (["FILE", "--set", "optim.lr"], "write key=value"),
        (["FILE", "--set", "model.router=nix"], "Variant 'two' cannot be run"),
        (["FILE", "--parallel", "0"], "--parallel"),
        (["FILE", "--out", "HOME"], "not empty"),
    ],
)
def test_bad_input_is_one_line(call: Call, file: Path, home: Path, arguments: list[str], words: str) -> None:
    (home / "mine.txt").write_text("mine")
    named = {"FILE": str(file), "HOME": str(home)}
    code, out, err = call(*[named.get(item, item) for item in arguments], "--home", home)
    assert (code, out) == (2, "") and words in err and err.count("\n") == 1
    assert [path.name for path in home.rglob("*")] == ["mine.txt"]


def test_the_help_names_the_bundled_sweeps_and_imports_nothing_heavy() -> None:
    code = """
import sys
from moescope_server import cli
sys.argv = ["moescope", "sweep", "--help"]
try:
    cli.main()
except SystemExit:
    print(sorted({"torch", "numpy", "transformers"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(name in " ".join(done.stdout.split()).replace("- ", "-") for name in sweep_names())
    assert done.stdout.splitlines()[-1] == "[]"


def until(folder: Path, process: subprocess.Popen[str], reached: Callable[[State], bool]) -> None:
    deadline = time.monotonic() + 100
    while not ((folder / "sweep.json").exists() and reached(state(folder))):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


def test_a_sweep_that_was_killed_or_stopped_ends_with_the_same_table(call: Call, file: Path, home: Path) -> None:
    longer = ["--set", "optim.steps=200", "--seeds", "0"]
    assert call(file, "--out", home / "whole", *longer)[0] == 0
    out = home / "killed"
    command = [sys.executable, "-m", "moescope_server", "sweep", str(file), "--out", str(out), *longer]
    killed = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(out, killed, lambda now: now.cells[0].step >= 60)
    killed.kill()
    killed.communicate()
    assert state(out).status == "stopped"
    stopped = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(out, stopped, lambda now: now.cells[1].step >= 10)
    stopped.send_signal(signal.SIGINT)
    _, err = stopped.communicate(timeout=60)
    assert stopped.returncode == 0 and "The same command goes on with it." in err
    now = state(out)
    assert now.status == "stopped" and now.cells[0].status == "finished" and now.cells[1].status == "stopped"
    assert call(file, "--out", out, *longer)[0] == 0
    assert [cell.status for cell in state(out).cells] == ["finished"] * 2
    assert (out / "table.csv").read_bytes() == (home / "whole" / "table.csv").read_bytes()
