"""What a run tells, and that it tells the truth."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moescope.errors import InputError
from moescope.events import Event
from moescope.model import Batch, Transformer, loss
from moescope.objectives import OBJECTIVES, LoadBalance, RouterZ
from moescope.trace.io import read_trace
from moescope.train import train
from moescope.train.config import RunConfig, parse_run_config
from moescope.train.evaluate import evaluate
from moescope.train.prepare import prepare
from moescope.train.report import load_payload
from moescope.train.sampling import Windows

CLUSTERS: dict[str, Any] = {
    "model": {
        "input": "vectors",
        "head": "class",
        "causal": False,
        "num_heads": 0,
        "d_model": 16,
        "num_layers": 1,
        "d_expert": 16,
        "num_experts": 4,
        "max_seq": 4,
    },
    "data": {"spec": {"corpus": "clusters", "clusters": 4, "dims": 6, "tokens": 400}, "tokens": 400},
    "optim": {"steps": 60, "batch": 32, "lr": 0.02, "warmup": 5},
    "objectives": {"load_balance": 0.01},
    "probe": {"tokens": 40, "sample": 10},
    "eval_every": 0,
    "snapshot_every": 30,
    "checkpoint_every": 0,
    "load_every": 20,
}


def of_kind(events: list[Event], kind: str) -> list[Event]:
    return [event for event in events if event.kind == kind]


@pytest.fixture(scope="module")
def clusters(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Event], Path]:
    folder = tmp_path_factory.mktemp("runs") / "clusters"
    return list(train(parse_run_config(CLUSTERS), folder)), folder


def test_events_come_in_order_with_everything_that_was_asked_for(
    tiny: Callable[..., RunConfig], tmp_path: Path
) -> None:
    stages: list[str] = []
    events = list(train(tiny({"snapshot_every": 4}), tmp_path / "run", progress=stages.append))
    assert events[0].kind == "run_started" and events[-1].kind == "run_finished"
    steps = {kind: [event.step for event in of_kind(events, kind)] for kind in {event.kind for event in events}}
    assert steps["train"] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert steps["load"] == [4, 8]
    assert steps["eval"] == [0, 5, 8]
    assert steps["snapshot"] == [0, 4, 8]
    assert steps["checkpoint"] == [3, 6, 8]
    assert [event.step for event in events] == sorted(event.step for event in events)
    assert all(event.run == "run" and event.time > 0 for event in events)
    assert stages and all(isinstance(stage, str) for stage in stages)


def test_payloads_are_finite_and_plain(clusters: tuple[list[Event], Path]) -> None:
    import json

    for event in clusters[0]:
        json.dumps(dict(event.payload), allow_nan=False)


def test_the_loss_falls_on_clusters_that_can_be_told_apart(clusters: tuple[list[Event], Path]) -> None:
    first, last = of_kind(clusters[0], "eval")
    assert first.payload["loss"] == pytest.approx(math.log(4), abs=0.5)
    assert last.payload["loss"] < 0.5 * first.payload["loss"] and last.payload["accuracy"] > 0.85
    assert clusters[0][-1].payload["eval_loss"] == last.payload["loss"]


def test_snapshots_are_traces_of_the_same_probe_at_other_weights(clusters: tuple[list[Event], Path]) -> None:
    events, folder = clusters
    paths = [folder / event.payload["path"] for event in of_kind(events, "snapshot")]
    assert [path.name for path in paths] == [f"step-{step:06d}.safetensors" for step in (0, 30, 60)]
    traces = [read_trace(path) for path in paths]
    for trace, event in zip(traces, of_kind(events, "snapshot"), strict=True):
        assert trace.num_tokens == event.payload["tokens"] == 40
        assert np.array_equal(trace.labels["cluster"].codes, traces[0].labels["cluster"].codes)
        assert trace.meta.self_check and all(item["passed"] for item in trace.meta.self_check)
        assert trace.sample is not None and len(trace.sample) == 10
        layer = trace.layers[0]
        assert layer.logits_TE is not None and np.isfinite(layer.logits_TE).all()
    assert not np.array_equal(traces[0].layers[0].logits_TE, traces[-1].layers[0].logits_TE)


def test_taking_snapshots_does_not_change_the_run(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    often, never = (
        [
            event.payload["loss"]
            for event in train(tiny({"snapshot_every": every}), tmp_path / str(every))
            if event.kind == "train"
        ]
        for every in (1, 0)
    )
    assert often == never


def test_objectives_enter_the_loss_with_their_coefficients(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    """The first step by hand: values of each objective, and the gradient of loss + sum of weighted objectives."""
    config = tiny({"objectives": {"load_balance": 0.5, "router_z": {"coefficient": 0.25}}, "optim.clip": 0})
    told = next(event for event in train(config, tmp_path / "run") if event.kind == "train").payload
    data = prepare(config, None, lambda stage: None)
    model = Transformer(data.model, seed=config.seed).train()
    batch = Windows(data.train, seq=16, batch=4, seed=config.seed)(0)
    output = model(batch, 0)
    options = {name: kind(kind.Config()) for name, kind in OBJECTIVES.items()}
    balance = 0.5 * sum(options["load_balance"](record) for record in output.records)
    z = 0.25 * sum(options["router_z"](record) for record in output.records)
    main = loss(output, batch)
    (main + balance + z).backward()
    norm = torch.stack([w.grad.square().sum() for w in model.parameters() if w.grad is not None]).sum().sqrt()
    assert told["loss"] == main.item()
    assert told["objectives"] == pytest.approx({"load_balance": balance.item(), "router_z": z.item()}, rel=1e-6)
    assert told["grad_norm"] == pytest.approx(norm.item(), rel=1e-5)
    assert len(output.records) == 2 and {LoadBalance, RouterZ} <= set(OBJECTIVES.values())


def test_a_coefficient_of_zero_leaves_the_run_as_without(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    runs = [
        [event.payload["loss"] for event in train(tiny({"objectives": what}), tmp_path / name) if event.kind == "train"]
        for name, what in (("zero", {"load_balance": 0.0}), ("none", {}), ("some", {"load_balance": 1.0}))
    ]
    assert runs[0] == runs[1] != runs[2]


def test_the_gradient_is_clipped(
    tiny: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moescope.train.optimizer import Optimizer

    norms: list[float] = []
    step = Optimizer.step

    def watched(self: Optimizer, lr: float) -> None:
        grads = [weight.grad for weight in self.parameters.values() if weight.grad is not None]
        norms.append(float(torch.nn.utils.get_total_norm(grads)))
        step(self, lr)

    monkeypatch.setattr(Optimizer, "step", watched)
    events = list(train(tiny({"optim.clip": 0.01, "optim.steps": 3}), tmp_path / "run"))
    assert all(event.payload["grad_norm"] > 0.01 for event in of_kind(events, "train"))
    assert norms == pytest.approx([0.01] * 3, rel=1e-3)


def test_load_counts_are_those_of_a_loop(tiny: Callable[..., RunConfig]) -> None:
    config = tiny({"model.router": "switch", "model.router_config": {"capacity_factor": 0.5}, "model.vocab_size": 50})
    model = Transformer(config.model, seed=0)
    ids = torch.randint(0, 50, (3, 16), generator=torch.Generator().manual_seed(0))
    valid = torch.arange(16) < torch.tensor([[16], [10], [16]])
    records = model(Batch(inputs=ids, valid=valid)).records
    for record, told in zip(records, load_payload(records)["layers"], strict=True):
        routing, count, sent = record.routing, [0] * 4, 0
        for token in range(48):
            if routing.valid_T[token]:
                for slot in range(routing.expert_TK.shape[1]):
                    count[int(routing.expert_TK[token, slot])] += bool(routing.wanted_TK[token, slot])
                    sent += bool(routing.sent_TK[token, slot])
        assert told["tokens"] == 42 and told["experts_per_token"] == sum(count) / 42 == 1
        assert told["load"] == pytest.approx([n / 42 for n in count]) and sum(told["load"]) == pytest.approx(1)
        assert told["maxvio"] == pytest.approx(max(count) / 42 * 4 - 1)
        assert told["dropped"] == pytest.approx(1 - sent / 42) and told["dropped"] > 0


def test_dead_slots_carry_no_load_and_do_not_count_as_experts(tiny: Callable[..., RunConfig]) -> None:
    config = tiny(
        {"model.num_experts": 2, "model.max_experts": 5, "model.vocab_size": 50, "model.router_config": {"k": 1}}
    )
    ids = torch.arange(32).view(2, 16)
    records = Transformer(config.model, seed=0)(Batch(inputs=ids, valid=torch.ones(2, 16, dtype=torch.bool))).records
    for layer in load_payload(records)["layers"]:
        assert layer["load"][2:] == [0, 0, 0] and sum(layer["load"]) == pytest.approx(1)
        assert layer["maxvio"] == pytest.approx(2 * max(layer["load"]) - 1)


def test_evaluation_is_the_mean_over_all_targets_and_leaves_the_mode(tiny: Callable[..., RunConfig]) -> None:
    model = Transformer(tiny({"model.vocab_size": 50}).model, seed=0).train()
    draw = torch.Generator().manual_seed(0)
    batches, losses = [], []
    for size, seq in ((2, 16), (3, 5)):
        ids = torch.randint(0, 50, (size, seq + 1), generator=draw)
        target = ids[:, 1:].clone()
        target[0, : seq // 2] = -100
        batch = Batch(inputs=ids[:, :-1].contiguous(), valid=torch.ones(size, seq, dtype=torch.bool), target=target)
        logp = model.eval()(batch).logits.log_softmax(-1)
        losses += [-logp[b, s, t].item() for b, row in enumerate(target.tolist()) for s, t in enumerate(row) if t >= 0]
        batches.append(batch)
    told = evaluate(model.train(), batches)
    assert told["loss"] == pytest.approx(np.mean(losses), rel=1e-5) and told["tokens"] == 47
    assert model.training and "accuracy" not in told


@pytest.mark.parametrize("log_every", [1, 4])
def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_checkpoint(
    tiny: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_every: int
) -> None:
    events = train(tiny({"log_every": log_every}), tmp_path / "run")
    for event in events:
        if event.kind == "checkpoint":
            break
    monkeypatch.setattr("moescope.train.stepping.loss", lambda output, batch: loss(output, batch) * torch.nan)
    with pytest.raises(InputError, match=r"became nan at step 4.*step-000003, is untouched"):
        list(events)
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-000003"]
    saved = next((tmp_path / "run/checkpoints/step-000003").glob("model.safetensors"))
    from safetensors.torch import load_file

    assert all(torch.isfinite(weight).all() for weight in load_file(saved).values())


def test_stop_is_asked_before_every_step(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    events = list(train(tiny(), tmp_path / "run", stop=lambda: True))
    assert not of_kind(events, "train")
    assert events[-1].payload["path"] == "checkpoints/step-000000"


def test_log_every_writes_fewer_train_events(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    events = list(train(tiny({"log_every": 3}), tmp_path / "run"))
    assert [event.step for event in of_kind(events, "train")] == [3, 6, 8]


def test_threads_are_put_back(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    before = torch.get_num_threads()
    events = train(tiny({"threads": before + 1, "optim.steps": 1, "optim.warmup": 0}), tmp_path / "run")
    assert next(events).payload["threads"] == before + 1
    list(events)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data.spec": "digits"}, "patches.*'tokens'"),
        ({"data.spec": "/no/such/folder"}, "no/such/folder"),
        ({"data.tokens": 20}, "too few|single document"),
        ({"data.tokenizer": "/no/tokenizer.json"}, "no such file"),
    ],
)
def test_data_that_does_not_fit_is_told_before_anything_is_written(
    tiny: Callable[..., RunConfig], tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        list(train(tiny(changes), tmp_path / "run"))
    assert not (tmp_path / "run").exists()
