from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moescope.config import dump
from moescope.errors import InputError
from moescope.train import load_run_config, parse_run_config, preset_names, presets, read_preset, run_schema
from moescope.train.config import RunConfig
from moescope.train.preset import override, parse_override


def test_listing_presets_does_not_import_torch() -> None:
    code = (
        "import sys, moescope.train as t; assert t.presets() and t.PRESETS; "
        "print([m for m in ('torch', 'transformers', 'sklearn', 'accelerate') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_a_valid_run_and_says_what_it_is(name: str) -> None:
    config = load_run_config(name)
    assert parse_run_config(json.loads(json.dumps(dump(config)))) == config
    card = presets()[name]
    assert card.name == name and card.title and len(card.description) > 40 and 0 < card.seconds <= 600
    assert config.optim.warmup < config.optim.steps


def test_overrides_are_toml_and_bare_words_are_strings(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('title = "mine"\n[optim]\nsteps = 20\nwarmup = 2\n', "utf-8")
    config = load_run_config(
        tmp_path / "run.toml",
        [
            "optim.lr=1e-2",
            "model.router=top_p",
            "model.router_config={p = 0.4}",
            "objectives.router_z=0.5",
            "threads = 1",
        ],
    )
    assert config.optim.lr == 0.01 and config.optim.steps == 20 and config.threads == 1
    assert config.model.router == "top_p" and config.model.router_config == {"p": 0.4}
    assert config.objective("router_z")[0] == 0.5
    assert load_run_config(tmp_path / "run.toml", {"optim.lr": 0.01, "threads": 1}).optim.lr == 0.01


def test_overriding_does_not_change_what_it_is_given() -> None:
    values: dict[str, Any] = {"optim": {"steps": 1}}
    assert override(values, {"optim.steps": 2, "model.num_layers": 3}) == {
        "optim": {"steps": 2},
        "model": {"num_layers": 3},
    }
    assert values == {"optim": {"steps": 1}}


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("a.b=1", "a.b", 1),
        ("a = [1, 2]", "a", [1, 2]),
        ("a=x=y", "a", "x=y"),
        ("a='1'", "a", "1"),
        ("a=true", "a", True),
        ("a=none", "a", None),
    ],
)
def test_one_override(text: str, key: str, value: Any) -> None:
    assert parse_override(text) == (key, value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optim.lr": "fast"}, ["optim.lr", "'fast'"]),
        ({"optim.lr": -1}, ["lr", "-1", "positive"]),
        ({"optim.lr": float("nan")}, ["lr", "nan"]),
        ({"optim.learning_rate": 1}, ["optim.learning_rate", "1"]),
        ({"speed": 3}, ["speed", "3"]),
        ({"model.router": "best"}, ["router", "'best'", "topk_softmax"]),
        ({"model.router_config": {"k": 99}}, ["k", "99"]),
        ({"model.router": "expert_choice"}, ["expert_choice", "leaky_control"]),
        ({"model.d_model": 0}, ["d_model", "0"]),
        ({"objectives": {"beauty": 1.0}}, ["objectives", "beauty", "load_balance"]),
        ({"objectives": {"load_balance": {"weight": 1.0}}}, ["load_balance", "coefficient"]),
        ({"objectives": {"load_balance": {"coefficient": 1.0, "power": 2}}}, ["power", "2"]),
        ({"objectives": {"load_balance": -0.1}}, ["load_balance", "at least 0"]),
        ({"optim.seq": 64}, ["seq", "64", "max_seq = 16"]),
        ({"optim.warmup": 9}, ["warmup", "9", "steps = 8"]),
        ({"data.held_out": 0}, ["held_out", "0"]),
        ({"keep_checkpoints": 0}, ["keep_checkpoints", "0"]),
        ({"optim.precision": "fp8"}, ["precision", "'fp8'"]),
        ({"optim.steps": 10**30}, ["optim.steps", "2^53"]),
        ({"seed": 2**70}, ["seed", "2^53"]),
        ({"threads": 10**9}, ["threads", "1000000000"]),
        ({"model.moe_layers": []}, ["moe_layers", "at least one block"]),
    ],
)
def test_a_bad_value_is_told_with_its_key_and_itself(
    tiny: Callable[..., RunConfig], changes: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        tiny(changes)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_a_key_below_a_plain_value_is_refused() -> None:
    with pytest.raises(InputError, match="seed"):
        override({"seed": 1}, {"seed.deep": 2})


@pytest.mark.parametrize(("content", "words"), [("optim = [", "not TOML"), ("seconds = 'soon'", "seconds")])
def test_a_bad_file_is_told(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "bad.toml").write_text(content, "utf-8")
    with pytest.raises(InputError, match=words):
        read_preset(tmp_path / "bad.toml")


def test_an_unknown_preset_names_those_that_exist() -> None:
    with pytest.raises(InputError, match=r"no-such.*neither a preset \(.*lm-installed"):
        load_run_config("no-such")


def test_every_field_of_the_schema_has_a_help_text() -> None:
    described = run_schema()
    for table in (described, *(described["$defs"][name] for name in ("OptimConfig", "DataConfig", "ProbeConfig"))):
        for name, item in table["properties"].items():
            assert item.get("description") or "$ref" in item, name


def test_another_router_starts_from_its_own_options() -> None:
    assert load_run_config("lm-small", ["model.router=top_p"]).model.router_config == {}
    assert (
        load_run_config("lm-small", ["model.router=top_p", "model.router_config.p=0.3"]).model.router_config["p"] == 0.3
    )
    assert load_run_config("lm-small", ["model.router=topk_softmax"]).model.router_config == {"k": 2}


def test_another_detector_initialiser_or_acceptor_starts_from_its_own_options() -> None:
    there = load_run_config("grow-clusters").expansion
    assert there is not None
    for part, other in (("detector", "mass"), ("initialiser", "clone"), ("acceptor", "always")):
        assert getattr(there, part) != other and getattr(there, f"{part}_config"), (
            "the preset has options to leave behind"
        )
        changed = load_run_config("grow-clusters", [f"expansion.{part}={other}"]).expansion
        assert changed is not None and getattr(changed, f"{part}_config") == {}
        kept = load_run_config("grow-clusters", [f"expansion.{part}={getattr(there, part)}"]).expansion
        assert kept == there


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["model.router=sequence", 'model.router_config={pool="prefix", prefix=97}'], "seq"),
        (["model.router=soft", "model.leaky_control=true", "objectives={orthogonality=0.1}"], "soft routing"),
        (["model.router=ac_release_lm"], "model.leaky_control = true"),
        (['evals={"a.b"={share=0.1}}'], "no name"),
        (['evals={"../x"={share=0.1}}'], "no name"),
        (["evals={a={share=0.1, word=" + repr("A" * 101) + "}}"], "word"),
    ],
)
def test_what_could_not_train_is_refused_before_anything_is_read(overrides: list[str], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        load_run_config("lm-small", overrides)


def test_a_key_or_a_value_of_any_length_is_refused_in_one_short_sentence() -> None:
    for key in ("a." * 4000 + "a", "model." * 60, "expansion." + "x" * 10_000):
        with pytest.raises(InputError) as refused:
            load_run_config("grow-clusters", {key: 1})
        assert len(str(refused.value)) < 400
    for value in ([0] * 10_000, ["x"] * 10_000):
        with pytest.raises(InputError, match="layers") as refused:
            load_run_config("grow-clusters", {"expansion.layers": value})
        assert len(str(refused.value)) < 400
    with pytest.raises(InputError, match="detector") as refused:
        load_run_config("grow-clusters", {"expansion.detector": "x" * 10_000})
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("optim.batch", 10**9, r"OptimConfig\.batch = 1000000000: at most 1048576"),
        ("expansion.detector_config", {"ridge": 1e-300}, "ConflictConfig.ridge = 1e-300: at least 1e-12"),
    ],
)
def test_what_would_take_all_memory_or_fail_in_the_middle_is_refused(key: str, value: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        load_run_config("grow-clusters", {key: value})


def test_a_window_that_no_memory_holds_is_refused() -> None:
    with pytest.raises(InputError, match=r"MassConfig\.omega = 1000000000000000: it must lie between 3 and 1048576"):
        load_run_config("grow-clusters", {"expansion.detector": "mass", "expansion.detector_config": {"omega": 10**15}})
