"""Data that arrives: what is drawn at a step has arrived by then, all of it, as a function of (seed, step)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moescope.config import dump, parse
from moescope.data.base import Labels, TokenSet
from moescope.data.regressions import RegressionsCorpus
from moescope.errors import InputError
from moescope.train import train
from moescope.train.arrivals import Arrival, ArriveConfig, arrivals, stages
from moescope.train.beginning import training_batches
from moescope.train.config import RunConfig, parse_run_config
from moescope.train.prepare import prepare
from moescope.train.sampling import Arriving, Documents, Windows

DOMAINS = ("english", "python", "rust", "toml")


def texts(per_domain: int = 4, length: int = 30) -> TokenSet:
    """Documents of four domains, a fifth of them of none; token ids are 1000 * document + position."""
    num_docs = 5 * per_domain
    doc = np.repeat(np.arange(num_docs, dtype=np.int32), length)
    codes = np.where(doc % 5 == 4, -1, doc % 5).astype(np.int16)
    ids = (1000 * doc + np.tile(np.arange(length), num_docs)).astype(np.int32)
    return TokenSet(kind="text", inputs=ids, doc=doc, labels={"domain": Labels(codes, DOMAINS, "document")}, source={})


def arriving(tokens: TokenSet, config: ArriveConfig, *, steps: int, seed: int = 0) -> Arriving:
    return Arriving(
        tokens,
        stages(config, tokens, steps),
        seed,
        lambda part, seed: Windows(part, seq=8, batch=4, seed=seed),
    )


def kinds(source: Arriving, step: int) -> set[int]:
    """Documents' numbers modulo 5 (their domains) in the batch of a step."""
    return {int(i) // 1000 % 5 for i in source(step).inputs.flatten().tolist()}


def test_nothing_is_drawn_before_it_arrives_and_everything_after() -> None:
    config = ArriveConfig(label="domain", order=("python", ("english", "toml")), every=40)
    tokens = texts()
    assert arrivals(config, tokens, 100) == (Arrival("python", 0), Arrival("english", 40), Arrival("toml", 40))
    source = arriving(tokens, config, steps=100)
    before = set().union(*(kinds(source, step) for step in range(40)))
    after = set().union(*(kinds(source, step) for step in range(40, 80)))
    assert before == {1, 2, 4}, "python, and what is not named: rust and what has no domain"
    assert after == {0, 1, 2, 3, 4}
    assert kinds(source, 3) <= before, "and back again"


def test_an_empty_order_is_that_of_the_data() -> None:
    config, tokens = ArriveConfig(label="domain", every=10), texts()
    assert [arrival.step for arrival in arrivals(config, tokens, 100)] == [0, 10, 20, 30]
    assert [arrival.value for arrival in arrivals(config, tokens, 25)] == list(DOMAINS[:3])
    assert 3 not in set().union(*(kinds(arriving(tokens, config, steps=25), step) for step in range(25)))


def test_an_epoch_passes_through_what_is_there() -> None:
    config, tokens = ArriveConfig(label="domain", order=("english", "python", "rust", "toml"), every=10), texts()
    source = arriving(tokens, config, steps=100)
    for first, documents in ((0, 8), (10, 12), (30, 20)):
        items = (documents * 30 - 1) // 8 - 1
        batches = [source(first + step) for step in range(items // 4)]
        seen = torch.cat([batch.inputs.flatten() for batch in batches])
        assert source.items == items and len(seen.unique()) == len(seen) == items // 4 * 32


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    config, tokens = ArriveConfig(label="domain", order=("english", "python"), every=10), texts()
    one, other = (arriving(tokens, config, steps=50, seed=3) for _ in range(2))
    for step in range(20):
        other(step)
    for step in (4, 30, 9, 10):
        assert torch.equal(one(step).inputs, other(step).inputs)
    assert not torch.equal(one(30).inputs, arriving(tokens, config, steps=50, seed=4)(30).inputs)


def test_a_value_that_comes_first_and_alone_changes_nothing() -> None:
    tokens = texts()
    config = ArriveConfig(label="domain", order=(DOMAINS,), every=10)
    plain = Windows(tokens, seq=8, batch=4, seed=2)
    assert torch.equal(arriving(tokens, config, steps=50, seed=2)(30).inputs, plain(30).inputs)


def test_documents_with_values_arrive_too() -> None:
    tokens = RegressionsCorpus(parse(RegressionsCorpus.Config, {"clusters": 3, "tokens": 60})).token_set()
    code_of = {tuple(row): int(code) for row, code in zip(tokens.inputs, tokens.labels["cluster"].codes, strict=True)}
    config = ArriveConfig(label="cluster", order=("c2", "c0"), every=5)

    def over(part: TokenSet, seed: int) -> Documents:
        return Documents(part, max_seq=1, batch=30, seed=seed)

    source = Arriving(tokens, stages(config, tokens, 10), 0, over)
    drawn = [{code_of[tuple(row)] for row in source(step).inputs[:, 0].numpy()} for step in (0, 4, 5)]
    assert drawn == [{1, 2}, {1, 2}, {0, 1, 2}]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"label": "topic"}, "no such label; it has domain, word"),
        ({"label": "word"}, "label of tokens"),
        ({"order": ["english", "latin"]}, "no value 'latin'; it has english, python, rust, toml"),
        ({"order": ["english", ["rust", "english"]]}, "stands there twice"),
        ({"order": [[]]}, "empty"),
        ({"every": 0}, "at least 1"),
    ],
)
def test_what_is_not_there_is_refused_in_a_sentence(changes: dict[str, Any], why: str) -> None:
    tokens = texts()
    tokens.labels["word"] = Labels(tokens.labels["domain"].codes, DOMAINS, "token")  # type: ignore[index]
    with pytest.raises(InputError, match=why) as caught:
        arrivals(parse(ArriveConfig, {"label": "domain", **changes}), tokens, 100)
    assert "\n" not in str(caught.value)


def test_too_little_at_the_start_is_refused_at_once() -> None:
    tokens = texts(per_domain=1, length=8)
    with pytest.raises(InputError, match="too few for windows"):
        arriving(tokens, ArriveConfig(label="domain", order=("python", "rust", "toml", "english")), steps=400)


RUN: dict[str, Any] = {
    "model": {
        "input": "vectors", "head": "values", "causal": False, "num_heads": 0, "d_model": 8, "num_layers": 1,
        "num_experts": 2, "max_seq": 1, "norm": "none", "expert": "linear", "router": "mass",
    },
    "data": {"spec": "regressions?clusters=3&tokens=300", "arrive": {"label": "cluster", "every": 4}},
    "optim": {"steps": 10, "batch": 16, "warmup": 2, "lr": 0.01},
    "probe": {"tokens": 60, "sample": 10},
    "load_every": 5, "eval_every": 5, "eval_batches": 1, "snapshot_every": 0, "checkpoint_every": 0,
}  # fmt: skip


def test_held_out_data_and_probe_hold_all_from_the_start() -> None:
    config = parse_run_config(RUN)
    data = prepare(config, None, lambda stage: None)
    assert [(arrival.value, arrival.step) for arrival in data.arrivals] == [("c0", 0), ("c1", 4), ("c2", 8)]
    for part in (data.held_out, data.probe):
        assert set(part.labels["cluster"].codes.tolist()) == {0, 1, 2}
    batch = training_batches(config, data)(0)
    assert batch.target is not None and batch.target.shape == (16, 4)
    assert parse_run_config(dump(config)) == config


def test_a_run_with_values_and_arrivals_is_told_and_resumed_exactly(tmp_path: Path) -> None:
    config = parse_run_config(RUN)
    whole = list(train(config, tmp_path / "whole"))
    (started,) = [event for event in whole if event.kind == "run_started"]
    assert started.payload["data"]["arrivals"][1] == {"value": "c1", "step": 4}
    assert started.payload["data"]["floor"]["squared_error"] == pytest.approx(0.01, abs=1e-3)
    held = [event.payload for event in whole if event.kind == "eval"]
    assert all("accuracy" not in payload and np.isfinite(payload["loss"]) for payload in held)
    for stop in (3, 4, 7):
        folder = tmp_path / f"cut{stop}"
        counted = iter(range(100))
        list(train(config, folder, stop=lambda counted=counted, stop=stop: next(counted) >= stop))
        resumed = list(train(config, folder, resume=folder))
        losses = {event.step: event.payload["loss"] for event in resumed if event.kind == "train"}
        due = {event.step: event.payload["loss"] for event in whole if event.kind == "train" and event.step in losses}
        assert min(losses) == stop + 1 and losses == due


def test_text_arrives_in_a_run(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    """Every file of the tiny run is a domain of its own."""
    names = [f"text{index:02d}" for index in range(24)]
    arrive = {"label": "domain", "order": [names[:12], names[12:]], "every": 4}
    (started, *_, last) = train(tiny({"data.arrive": arrive}), tmp_path / "run")
    assert [item["step"] for item in started.payload["data"]["arrivals"]] == [0] * 12 + [4] * 12
    assert last.kind == "run_finished"
    with pytest.raises(InputError, match="no training document has arrived"):
        list(train(tiny({"data.arrive": {"label": "domain", "every": 1000}}), tmp_path / "none"))
    with pytest.raises(InputError, match="no such label"):
        list(train(tiny({"data.arrive": {"label": "nothing"}}), tmp_path / "other"))


def test_a_head_is_refused_where_the_data_cannot_teach_it() -> None:
    for spec, head in (("regressions", "class"), ("clusters", "values")):
        config = parse_run_config({**RUN, "model": {**RUN["model"], "head": head}, "data": {"spec": spec}})
        with pytest.raises(InputError, match=r"model\.head may be"):
            prepare(config, None, lambda stage: None)
