"""A fork goes on from another run's checkpoint, and says in a sentence what it cannot go on with."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from moescope.errors import InputError
from moescope.events import Event
from moescope.train import train
from moescope.train.config import RunConfig, parse_run_config
from moescope.train.forking import Fork
from train.by_hand import CountingGrowth

GINC: dict[str, Any] = {
    "model": {"d_model": 16, "num_layers": 1, "num_heads": 2, "d_expert": 8, "num_experts": 4, "max_seq": 16},
    "data": {"spec": {"corpus": "ginc", "symbols": 12}, "tokens": 3000},
    "optim": {"steps": 3, "batch": 4, "seq": 16, "warmup": 1},
    "probe": {"tokens": 100, "sample": 10},
    "eval_batches": 1,
}
CLUSTERS: dict[str, Any] = {
    "model": {
        "input": "vectors", "head": "class", "causal": False, "num_heads": 0, "d_model": 16, "num_layers": 1,
        "d_expert": 16, "num_experts": 4, "max_seq": 4,
    },
    "data": {"spec": {"corpus": "clusters", "clusters": 4, "dims": 6, "tokens": 400}, "tokens": 400},
    "optim": {"steps": 3, "batch": 8, "warmup": 1},
    "probe": {"tokens": 40, "sample": 10},
}  # fmt: skip


def with_data(plain: dict[str, Any], steps: int, **options: Any) -> RunConfig:
    data, optim = plain["data"], plain["optim"]
    spec = {**data["spec"], **options}
    return parse_run_config({**plain, "data": {**data, "spec": spec}, "optim": {**optim, "steps": steps}})


def told(events: Sequence[Event], after: int = -1) -> list[Any]:
    kinds = ("train", "load", "eval", "drift")
    return [(e.step, e.kind, {**e.payload, "seconds": 0}) for e in events if e.kind in kinds and e.step > after]


@pytest.fixture(scope="module")
def parent(tiny: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 steps with checkpoints at 3, 6, 8."""
    folder = tmp_path_factory.mktemp("parent") / "parent"
    list(train(tiny({"keep_checkpoints": 9}), folder))
    return folder


def test_with_the_same_configuration_it_is_the_run_gone_on(
    parent: Path, tiny: Callable[..., RunConfig], tmp_path: Path
) -> None:
    whole = list(train(tiny({"keep_checkpoints": 9}), tmp_path / "whole"))
    events = list(train(tiny({"keep_checkpoints": 9}), tmp_path / "fork", fork=parent / "checkpoints/step-000003"))
    assert told(events, after=3) == told(whole, after=3)
    for name in ("model.safetensors", "optimizer.safetensors"):
        one, other = (load_file(tmp_path / run / "checkpoints/step-000008" / name) for run in ("whole", "fork"))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_it_begins_by_saying_where_it_stands(parent: Path, tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    events = list(train(tiny({"optim.steps": 11}), tmp_path / "fork", fork=parent))
    assert [event.kind for event in events[:4]] == ["run_started", "eval", "snapshot", "checkpoint"]
    assert {event.step for event in events[:4]} == {8}
    assert events[0].payload["forked"] == {"run": "parent", "checkpoint": "step-000008", "step": 8}
    steps = [event for event in events if event.kind == "train"]
    assert [event.step for event in steps] == [9, 10, 11] and steps[0].payload["tokens"] == 9 * 64
    assert "forked" not in next(iter(train(tiny(), tmp_path / "new"))).payload


def test_settings_may_differ_and_are_followed(parent: Path, tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    changes = {
        "optim.steps": 12, "optim.lr": 0.002, "optim.batch": 2, "optim.seq": 8, "data.tokens": 3000, "seed": 3,
        "objectives": {"load_cv": {"coefficient": 0.1, "calibrate": True}}, "model.router_config": {"k": 1},
        "log_every": 2,
    }  # fmt: skip
    config = tiny(changes)
    events = list(train(config, tmp_path / "fork", fork=parent))
    assert [event.step for event in events if event.kind == "train"] == [10, 12]
    assert all(set(event.payload["objectives"]) == {"load_cv"} for event in events if event.kind == "train")
    assert [event.step for event in events if event.kind == "calibration"] == [9], "anew, as the objectives are others"
    assert events[0].payload["layers"][0]["k"] == 1 and events[0].payload["config"]["optim"]["lr"] == 0.002
    load = next(event for event in events if event.kind == "load")
    assert load.payload["layers"][0]["experts_per_token"] == 1


def test_what_calibration_found_goes_on_with_the_same_objectives(
    tiny: Callable[..., RunConfig], tmp_path: Path
) -> None:
    objectives = {"load_cv": {"coefficient": 0.1, "calibrate": True}}
    config = tiny({"objectives": objectives, "optim.steps": 3})
    list(train(config, tmp_path / "parent"))
    longer = tiny({"objectives": objectives, "optim.steps": 5})
    events = list(train(longer, tmp_path / "fork", fork=tmp_path / "parent"))
    assert not [event for event in events if event.kind == "calibration"]
    assert Fork.find(tmp_path / "fork").counts.scales == Fork.find(tmp_path / "parent").counts.scales != {}


def test_it_needs_nothing_of_its_parent_and_resumes_exactly(
    parent: Path, tiny: Callable[..., RunConfig], tmp_path: Path
) -> None:
    shutil.copytree(parent, tmp_path / "parent")
    config = tiny({"optim.steps": 12, "model.router_config": {"k": 1}, "checkpoint_every": 0})
    whole = list(train(config, tmp_path / "whole", fork=parent))
    first: list[Event] = []
    for event in train(config, tmp_path / "parts", fork=tmp_path / "parent"):
        first.append(event)
        if event.kind == "checkpoint":
            shutil.rmtree(tmp_path / "parent")
        if event.kind == "train" and event.step == 10:
            break
    assert [event.step for event in first if event.kind == "checkpoint"] == [8]
    rest = list(train(config, tmp_path / "parts", resume=tmp_path / "parts"))
    assert rest[0].payload == {"from_step": 8} and told(rest) == told(whole, after=8)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optim.steps": 8}, r"optim\.steps = 8.*goes on from step 8"),
        ({"model.d_model": 32}, r"model\.d_model is 32, it was 16"),
        ({"model.num_experts": 8}, r"model\.num_experts is 8, it was 4"),
        ({"model.max_experts": 8}, r"model\.max_experts is 8, it was None"),
        ({"model.router": "sigmoid_bias"}, r"model\.router is 'sigmoid_bias'"),
        ({"model.num_heads": 1}, r"model\.num_heads is 1, it was 2"),
        ({"optim.batch": 0}, "batch"),
    ],
)
def test_what_it_cannot_go_on_with_is_told_before_anything_is_written(
    parent: Path, tiny: Callable[..., RunConfig], tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words) as caught:
        train(tiny({"optim.steps": 12, **changes}), tmp_path / "fork", fork=parent)
    assert "\n" not in str(caught.value) and not (tmp_path / "fork").exists()


def test_options_that_would_change_a_tensor_are_refused(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    def config(steps: int, **options: Any) -> RunConfig:
        router = {"model.router": "xmoe", "model.router_config": options}
        return tiny({**router, "optim.steps": steps})

    list(train(config(3, width=4), tmp_path / "parent"))
    with pytest.raises(InputError, match=r"model\.router_config: it changes the tensor 'blocks\.0\.moe\.router"):
        list(train(config(5, width=6), tmp_path / "other", fork=tmp_path / "parent"))
    assert list(train(config(5, width=4, k=1), tmp_path / "fork", fork=tmp_path / "parent"))[-1].step == 5


def test_words_that_the_vocabulary_lacks_are_refused(tmp_path: Path) -> None:
    list(train(with_data(GINC, 3), tmp_path / "parent"))
    with pytest.raises(InputError, match=r"% of its words are not in the vocabulary"):
        list(train(with_data(GINC, 5, symbols=40), tmp_path / "other", fork=tmp_path / "parent"))
    assert not (tmp_path / "other").exists()
    fewer = list(train(with_data(GINC, 5, symbols=11), tmp_path / "fork", fork=tmp_path / "parent"))
    assert fewer[-1].kind == "run_finished"


def test_classes_and_widths_that_the_model_lacks_are_refused(tmp_path: Path) -> None:
    list(train(with_data(CLUSTERS, 3), tmp_path / "parent"))
    for options, words in (({"dims": 5}, "d_input is 5, it was 6"), ({"clusters": 6}, "num_classes is 6, it was 4")):
        with pytest.raises(InputError, match=words):
            list(train(with_data(CLUSTERS, 5, **options), tmp_path / "other", fork=tmp_path / "parent"))
    fewer = list(train(with_data(CLUSTERS, 5, clusters=3), tmp_path / "fork", fork=tmp_path / "parent"))
    assert fewer[0].payload["config"]["model"]["num_classes"] == 4 and fewer[-1].kind == "run_finished"
    again = list(train(with_data(CLUSTERS, 5, clusters=3), tmp_path / "fork", resume=tmp_path / "fork"))
    assert again[-1].kind == "run_finished"


def test_other_data_is_read_with_the_checkpoints_tokenizer(
    parent: Path, tiny: Callable[..., RunConfig], tmp_path: Path
) -> None:
    (tmp_path / "texts").mkdir()
    for name in "abcd":
        (tmp_path / f"texts/{name}.txt").write_text("Quite other words, naïve ones 😀.\n" * 30, "utf-8")
    config = tiny({"data.spec": str(tmp_path / "texts"), "optim.steps": 10, "data.vocab_size": 400})
    events = list(train(config, tmp_path / "fork", fork=parent))
    assert events[0].payload["config"]["model"]["vocab_size"] == 270 and events[-1].kind == "run_finished"
    newest = tmp_path / "fork/checkpoints/step-000010/tokenizer.json"
    assert newest.read_bytes() == (parent / "checkpoints/step-000008/tokenizer.json").read_bytes()


def test_what_growth_has_gathered_goes_on_where_expansion_is_the_same(
    tiny: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moescope.train.run.Growth", CountingGrowth)
    growable = {"model.max_experts": 6, "optim.steps": 3}
    list(train(tiny(growable), tmp_path / "parent"))
    same = list(train(tiny({**growable, "optim.steps": 5}), tmp_path / "same", fork=tmp_path / "parent"))
    other = {**growable, "optim.steps": 5, "expansion": {"detector": "never", "start": 1}}
    anew = list(train(tiny(other), tmp_path / "anew", fork=tmp_path / "parent"))
    seen = [[event.payload["seen"] for event in events if event.kind == "drift"] for events in (same, anew)]
    assert seen == [[4, 5], [1, 2]]


def test_a_grown_model_goes_on_with_the_experts_it_has(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    """With the same `expansion` as if never interrupted, in the middle of a trial; without it they stay as they are."""
    often = {"omega": 3, "warmup": 4, "alpha": 0.5, "c": 50.0}
    expansion = {
        "detector": "mass",
        "detector_config": often,
        "acceptor": "trial_then_keep",
        "acceptor_config": {"trial_steps": 5, "share": 0.0005},
        "phase_steps": 20,
        "patience": 50,
    }
    growing = {
        "model.num_experts": 2, "model.max_experts": 6, "optim.steps": 24, "load_every": 1, "keep_checkpoints": 99,
        "checkpoint_every": 1,
    }  # fmt: skip
    whole = list(train(tiny({**growing, "expansion": expansion}), tmp_path / "parent"))
    born = [event.step for event in whole if event.kind == "expansion"]
    judged = [event.step for event in whole if event.kind == "acceptance"]
    middle = next(step for step in range(1, 20) if sum(b <= step for b in born) > sum(j <= step for j in judged))
    begun = tmp_path / f"parent/checkpoints/step-{middle:06d}"
    same = list(train(tiny({**growing, "expansion": expansion}), tmp_path / "same", fork=begun))
    kinds = ("train", "load", "drift", "expansion", "acceptance", "growth_ended")
    after = [
        [(e.step, e.kind, {**e.payload, "seconds": 0}) for e in events if e.kind in kinds] for events in (whole, same)
    ]
    assert after[1] == [item for item in after[0] if item[0] > middle] and judged[-1] > middle
    fixed = list(train(tiny(growing), tmp_path / "fixed", fork=begun))
    assert not [event for event in fixed if event.kind in ("drift", "expansion", "acceptance", "prune")]
    alive = [[layer["alive"] for layer in event.payload["layers"]] for event in fixed if event.kind == "load"]
    there = load_file(begun / "model.safetensors")
    masks = [there[f"blocks.{index}.moe.alive_E"].nonzero().flatten().tolist() for index in (0, 1)]
    assert all(shown == masks for shown in alive) and sum(map(len, masks)) > 4


def test_the_command_without_a_home_forks(
    parent: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import json

    from moescope.train.__main__ import main

    config = json.loads((parent / "config.json").read_text("utf-8"))
    lines = [f"{name} = {json.dumps(value)}" for name, value in config["model"].items() if value not in (None, {})]
    text = "[model]\n" + "\n".join(lines) + f'\n[data]\nspec = "{texts}"\ntokens = 4000\n'
    (tmp_path / "run.toml").write_text(text + "[optim]\nsteps = 9\nbatch = 4\nseq = 16\nwarmup = 2\n", "utf-8")
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("moescope.train.allocator.keep_freed_memory", lambda: None)
    monkeypatch.setenv("GOMP_SPINCOUNT", "1")
    command = ["moescope.train", str(tmp_path / "run.toml"), "--out", str(tmp_path / "out"), "--fork", str(parent)]
    monkeypatch.setattr("sys.argv", command)
    assert main() == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert told[0]["payload"]["forked"]["step"] == 8 and told[-1]["kind"] == "run_finished" and told[-1]["step"] == 9


def test_there_must_be_a_checkpoint_and_one_origin(
    parent: Path, tiny: Callable[..., RunConfig], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="no checkpoint that a run could be forked from"):
        train(tiny(), tmp_path / "fork", fork=tmp_path)
    with pytest.raises(InputError, match="not both"):
        train(tiny(), tmp_path / "fork", fork=parent, resume=parent)
    with pytest.raises(InputError, match="already holds a run"):
        train(tiny({"optim.steps": 12}), parent, fork=parent)
