"""What cannot be watched is refused in one sentence; what goes wrong later never ends the training."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import moescope
from moescope.data.base import TokenSet
from moescope.errors import InputError
from moescope.watching.ended import close_dead
from watch_cases import Read, batches, build, train


def other() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=16))


def compiled() -> Any:
    model = build("mixtral")
    model.compile(backend="eager")
    return model


def odd() -> Any:
    model = build("mixtral")
    model.model.layers[1].mlp.experts = torch.nn.ModuleList([torch.nn.Linear(2, 2)])
    return model


def narrow() -> Any:
    model = build("mixtral")
    model.model.layers[0].mlp.gate = torch.nn.Linear(32, 3, bias=False)
    return model


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: "model", "watch takes the model, a torch.nn.Module, and got str"),
        (lambda: torch.nn.Linear(2, 2), "'Linear' is no architecture of the table; known are mixtral, olmoe"),
        (other, "'gpt2' is no architecture of the table"),
        (compiled, "The model is compiled"),
        (lambda: torch.compile(build("mixtral"), backend="eager"), "The model is compiled"),
        (lambda: torch.nn.DataParallel(build("mixtral")), "The model is in DataParallel"),
        (odd, "not laid out as the table states for Mixtral: model.layers.1.mlp.experts does not hold its experts in"),
        (narrow, "not laid out as the table states for Mixtral: model.layers.0.mlp.gate has no weight of shape"),
    ],
    ids=["no model", "no config", "dense", "compiled", "torch.compile", "DataParallel", "experts", "router"],
)
def test_a_model_that_cannot_be_watched_is_refused(make: Callable[[], Any], said: str, home: Path) -> None:
    with pytest.raises(InputError) as raised:
        moescope.watch(make(), run="m", home=home)
    sentence = str(raised.value)
    assert said in sentence and sentence.endswith(".") and "\n" not in sentence
    assert not list(home.iterdir())


@pytest.mark.parametrize(
    "options, said",
    [
        ({"load_every": -1}, "WatchConfig.load_every = -1"),
        ({"drift": "conflict"}, "WatchConfig.drift"),
        ({"loads_every": 2}, "WatchConfig.loads_every"),
        ({"probe": ["a text"]}, "needs the model's tokenizer"),
        ({"probe": "installed", "tokenizer": "bert"}, "tokenizer is a str"),
        ({"probe": "no-such-thing"}, "no-such-thing"),
    ],
    ids=["negative", "detector", "misspelt", "no tokenizer", "tokenizer", "spec"],
)
def test_bad_options_are_refused(options: dict[str, Any], said: str, home: Path) -> None:
    with pytest.raises(InputError, match=said):
        moescope.watch(build("mixtral"), run="m", home=home, **options)


def test_a_probe_that_the_model_cannot_read_is_refused(home: Path, probe: TokenSet) -> None:
    probe.inputs[3] = 97
    with pytest.raises(InputError, match="holds the token id 97, and the model knows the token ids 0 to 96"):
        moescope.watch(build("mixtral"), run="m", home=home, probe=probe)


def test_a_body_without_its_head_and_a_model_within_another_are_watched(home: Path, read: Callable[[], Read]) -> None:
    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = build("mixtral").model

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.inner(ids).last_hidden_state.square().mean()

    model = Wrapped().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with moescope.watch(model, run="m", home=home, load_every=1) as watcher:
        loss = model(batches(1)[0]["input_ids"])
        loss.backward()
        optimizer.step()
        watcher.step(loss)
    (told,) = read().events("load")
    assert [layer["tokens"] for layer in told.payload["layers"]] == [48, 48]
    assert read().events("run_started")[0].payload["layers"][0]["path"] == "layers.0.mlp.gate"


def test_a_store_that_fails_does_not_end_the_training(home: Path, read: Callable[[], Read]) -> None:
    data = batches(4)
    alone, watched = build("mixtral"), build("mixtral")
    losses = train(alone, data)
    with pytest.warns(UserWarning, match="moescope watches 'm' no more") as caught:
        with moescope.watch(watched, run="m", home=home, log_every=1) as watcher:
            had = train(watched, data[:2], watcher)
            watcher._log._store.database.close()  # type: ignore[union-attr]
            torch.manual_seed(7)
            watcher.step(0.0)
            watcher.step(0.0)
        assert had == losses[:2]
    assert len(caught) == 1
    assert [event.step for event in read().events("train")] == [1, 2] and read().run.status == "running"


DIES = """
import os, sys
sys.path.insert(0, sys.argv[2])
from watch_cases import batches, build, train
import moescope
model = build("mixtral")
with moescope.watch(model, run="dies", home=sys.argv[1], log_every=1) as watcher:
    train(model, batches(2), watcher)
    os._exit(9)
"""


def test_a_run_whose_process_died_says_so_at_the_next_look(home: Path, read: Callable[[], Read]) -> None:
    tests = str(Path(__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", DIES, str(home), tests], timeout=120, check=False)
    assert done.returncode == 9
    store = read().store
    assert read().run.status == "running"
    with moescope.watch(build("mixtral"), run="lives", home=home):
        close_dead(store)
        status = {run.name: (run.status, run.orphan) for run in store.runs() if run.origin == "run"}
        assert status == {"dies": ("failed", True), "lives": ("running", False)}
    close_dead(store)
    (dead,) = [run for run in store.runs() if run.name == "dies"]
    assert dead.error is not None and "is gone, and said nothing of it" in dead.error and dead.step == 2
    assert [event.kind for event in store.events_after(0, dead.id)].count("run_failed") == 1


@pytest.mark.parametrize("name", [None, 5, b"x", "half \ud800"])
def test_what_a_run_cannot_be_called_is_refused_before_anything_is_written(name: Any, home: Path) -> None:
    with pytest.raises(InputError, match="what the run is called is a text"):
        moescope.watch(build("mixtral"), run=name, home=home)


def test_a_run_has_a_name_of_at_most_200_characters(home: Path) -> None:
    moescope.watch(build("mixtral"), run="é" * 200, home=home)
    with pytest.raises(InputError, match="a run's name has at most 200 characters, not 201") as raised:
        moescope.watch(build("mixtral"), run="é" * 201, home=home)
    assert len(str(raised.value)) < 200


def test_the_error_that_ended_a_loop_is_raised_on_whatever_its_text_holds(home: Path, read: Callable[[], Read]) -> None:
    with pytest.raises(RuntimeError), moescope.watch(build("mixtral"), run="m", home=home):
        raise RuntimeError("no file \ud800")
    assert [event.payload["error"] for event in read().events("run_failed")] == ["RuntimeError: no file ?"]


@pytest.mark.parametrize("loss", ["x", torch.ones(3), [1], 10**400])
def test_a_loss_that_is_no_number_is_refused_in_one_sentence(loss: Any, home: Path) -> None:
    with (
        pytest.raises(InputError, match="is one number, and this is"),
        moescope.watch(build("mixtral"), run="m", home=home) as watcher,
    ):
        watcher.eval(loss)
