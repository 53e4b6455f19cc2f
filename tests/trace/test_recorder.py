"""Laws of recording: every token once, whatever the batches; drops, empty slots and dead slots as they were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moescope.adapters.ours import TransformerModel, card_of
from moescope.data.base import Labels, LabelSource, TokenSet
from moescope.errors import InputError
from moescope.metrics import alive_experts
from moescope.model import Batch, ModelConfig, Transformer, collate
from moescope.objectives.base import LayerRecord
from moescope.routers import ROUTERS
from moescope.routers.base import Routing
from moescope.trace.io import read_trace, write_trace
from moescope.trace.recorder import RoutingRecorder, batches, record_trace
from moescope.trace.schema import LayerMeta
from synthetic import make_trace

LENGTHS = (1, 16, 40, 7, 7, 7, 30, 2, 90)


def token_set(lengths: Sequence[int] = LENGTHS, seed: int = 0) -> TokenSet:
    total = sum(lengths)
    rng = np.random.default_rng(seed)
    ends = np.arange(1, total + 1, dtype=np.int32)
    return TokenSet(
        kind="text",
        inputs=rng.integers(0, 50, total).astype(np.int32),
        doc=np.repeat(np.arange(len(lengths)), lengths).astype(np.int32),
        labels={"parity": Labels((np.arange(total) % 2).astype(np.int16), ("even", "odd"), "token")},
        source={"corpus": "random"},
        text=bytes(range(33, 33 + 90)) * 3,
        start=ends - 1,
        end=ends,
    )


def opened(router: str = "topk_softmax", **options: Any) -> TransformerModel:
    shape: dict[str, Any] = {"vocab_size": 50, "d_model": 16, "num_layers": 3, "num_heads": 2, "d_expert": 8}
    shape |= {"num_experts": 6, "max_seq": 32, "moe_layers": (0, 2), "leaky_control": True, "router": router}
    model = Transformer(ModelConfig(**shape, **options))
    with torch.no_grad():
        for layer in model.moe.values():
            if hasattr(layer.router, "weight"):
                layer.router.weight.normal_(0.0, 0.7, generator=torch.Generator().manual_seed(1))
    return TransformerModel(model, card_of(model, router))


def by_hand(model: TransformerModel, tokens: TokenSet) -> dict[int, list[Routing]]:
    """One forward pass per sequence, in order: block to the Routing of each."""
    found: dict[int, list[Routing]] = {}
    for doc in range(tokens.num_docs):
        inside = np.flatnonzero(tokens.doc == doc)
        for at in range(0, len(inside), model.max_seq):
            part = inside[at : at + model.max_seq]
            for record in model.records(collate(tokens, [(int(part[0]), len(part))])):
                found.setdefault(record.layer, []).append(record.routing)
    return found


def test_a_trace_is_what_each_sequence_does_by_itself() -> None:
    """Naive loops over tokens, slots and experts against the recorder."""
    model, tokens = opened(), token_set()
    trace = record_trace(model, tokens, batch_tokens=1)
    assert trace.layer_ids == (0, 2) and trace.num_tokens == tokens.num_tokens
    for block, routings in by_hand(model, tokens).items():
        layer, at = trace.layers[block], 0
        mean = np.zeros(6)
        for routing in routings:
            for row in range(len(routing.valid_T)):
                chosen = routing.expert_TK[row].tolist()
                assert layer.expert_TK[at].tolist() == chosen
                assert layer.gate_TK[at].tolist() == routing.gate_TK[row].tolist()
                assert layer.sent_TK[at].all() and layer.logits_TE is not None
                assert layer.logits_TE[at].tolist() == routing.logits_TE[row].tolist()
                p = routing.probs_TE[row].double().numpy()
                assert layer.entropy_T[at] == pytest.approx(-(p * np.log(p)).sum(), abs=1e-5)
                others = [p[e] for e in range(6) if e not in chosen]
                assert layer.margin_T[at] == pytest.approx(min(p[chosen]) - max(others), abs=1e-6)
                mean += p
                at += 1
        assert at == tokens.num_tokens
        assert layer.mean_probs_E == pytest.approx(mean / at, abs=1e-6) and layer.mean_probs_E.dtype == np.float64


@pytest.mark.parametrize("router", [name for name, kind in ROUTERS.items() if kind.causal == "yes"])
def test_the_batch_size_does_not_change_a_causal_trace(router: str) -> None:
    model, tokens = opened(router), token_set()
    alone = record_trace(model, tokens, batch_tokens=1)
    for size in (33, 10_000):
        together = record_trace(model, tokens, batch_tokens=size)
        assert np.array_equal(alone.position, together.position)
        for block in alone.layer_ids:
            a, b = alone.layers[block], together.layers[block]
            assert np.array_equal(a.expert_TK, b.expert_TK) and np.array_equal(a.sent_TK, b.sent_TK)
            for name in ("gate_TK", "entropy_T", "margin_T", "mean_probs_E", "logits_TE", "hidden_nd"):
                assert np.allclose(getattr(a, name), getattr(b, name), atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("router", ROUTERS)
def test_counts_add_up_and_the_same_seed_gives_the_same_trace(router: str) -> None:
    model, tokens = opened(router), token_set()
    first, second = record_trace(model, tokens), record_trace(model, tokens)
    for block in first.layer_ids:
        layer, again = first.layers[block], second.layers[block]
        wanted, sent = layer.wanted_TK, layer.sent_TK
        if layer.meta.k is not None:
            assert wanted.sum() == tokens.num_tokens * layer.meta.k
        assert np.bincount(layer.expert_TK[sent], minlength=6).sum() == sent.sum()
        assert not (sent & ~wanted).any() and not layer.gate_TK[~sent].any()
        assert not (wanted[:, 1:] & ~wanted[:, :-1]).any(), "wanted slots come first"
        assert wanted.any(axis=0).all(), "no column is kept that nobody uses"
        rows = [row[row >= 0] for row in layer.expert_TK]
        assert all(len(np.unique(row)) == len(row) for row in rows)
        for name in ("expert_TK", "gate_TK", "sent_TK", "entropy_T", "mean_probs_E", "logits_TE", "hidden_nd"):
            assert np.array_equal(getattr(layer, name), getattr(again, name))
    assert first.sample is not None and np.array_equal(first.sample, second.sample)


def test_positions_restart_with_each_sequence_and_the_text_stays_in_order() -> None:
    tokens = token_set()
    trace = record_trace(opened(), tokens)
    expected = [i for length in LENGTHS for at in range(0, length, 32) for i in range(min(32, length - at))]
    assert trace.position.tolist() == expected
    assert np.array_equal(trace.doc, tokens.doc) and trace.labels["parity"] is tokens.labels["parity"]
    assert trace.token_id is not None and np.array_equal(trace.token_id, tokens.inputs)
    assert trace.token_text(5) == chr(33 + 5) and trace.meta.data == {"corpus": "random"}


def test_batches_are_of_one_length_and_hold_every_chunk_once() -> None:
    chunks = [(i * 10, 1 + i % 4) for i in range(40)]
    made = list(batches(chunks, 9))
    assert sorted(chunk for group in made for chunk in group) == sorted(chunks)
    for group in made:
        assert len({length for _, length in group}) == 1
        assert len(group) * group[0][1] <= 9 or len(group) == 1
    assert len(made) < len(chunks)


@pytest.mark.parametrize("sample", [0, 1, 50, 10_000])
def test_hidden_vectors_are_the_router_inputs_of_the_sampled_tokens(sample: int) -> None:
    model, tokens = opened(), token_set()
    trace = record_trace(model, tokens, sample=sample, seed=3, batch_tokens=1)
    assert trace.sample is not None
    assert len(trace.sample) == min(sample, tokens.num_tokens) == len(np.unique(trace.sample))
    assert (np.diff(trace.sample) > 0).all()
    inputs: dict[int, list[np.ndarray]] = {0: [], 2: []}
    for start, length in _chunks(tokens):
        for record in model.records(collate(tokens, [(start, length)])):
            inputs[record.layer].append(record.input_Td.numpy())
    for block, parts in inputs.items():
        assert np.array_equal(trace.layers[block].hidden_nd, np.concatenate(parts)[trace.sample])
    other = record_trace(model, tokens, sample=50, seed=4)
    assert sample != 50 or not np.array_equal(other.sample, trace.sample)


def _chunks(tokens: TokenSet) -> list[tuple[int, int]]:
    starts = [*np.flatnonzero(np.diff(tokens.doc, prepend=-1)).tolist(), tokens.num_tokens]
    return [(at, min(32, b - at)) for a, b in pairwise(starts) for at in range(a, b, 32)]


def test_logits_are_left_out_on_request_and_progress_reaches_the_end() -> None:
    seen: list[tuple[int, int]] = []
    tokens = token_set()
    trace = record_trace(
        opened(), tokens, logits=False, batch_tokens=40, progress=lambda done, total: seen.append((done, total))
    )
    assert all(layer.logits_TE is None for layer in trace.layers.values())
    assert seen[-1] == (tokens.num_tokens, tokens.num_tokens) and len(seen) > 3
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_drops_are_wanted_but_not_sent() -> None:
    model = opened("switch", router_config={"capacity_factor": 0.25})
    layer = record_trace(model, token_set()).layers[0]
    dropped = layer.wanted_TK & ~layer.sent_TK
    assert dropped.any() and layer.wanted_TK.all() and not layer.gate_TK[dropped].any()


def test_a_varying_k_keeps_as_many_slots_as_any_token_used() -> None:
    layer = record_trace(opened("top_p", router_config={"p": 0.6}), token_set()).layers[0]
    used = layer.wanted_TK.sum(axis=1)
    assert used.min() < used.max() == layer.expert_TK.shape[1] < 6 and layer.meta.k is None


def routing(**parts: Any) -> Routing:
    """T = 3, E = 4, K = 3, by hand: a gap before a wanted slot, a drop, and a token that wants nothing."""
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    probs = logits.softmax(-1)
    wanted = torch.tensor([[True, False, True], [True, True, False], [False, False, False]])
    made = {
        "logits_TE": logits,
        "probs_TE": probs,
        "scores_TE": probs,
        "expert_TK": torch.tensor([[3, 3, 1], [0, 1, 1], [2, 2, 2]]),
        "gate_TK": torch.tensor([[0.7, 0.0, 0.3], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]),
        "wanted_TK": wanted,
        "sent_TK": wanted & torch.tensor([[True, True, True], [True, False, True], [True, True, True]]),
        "valid_T": torch.ones(3, dtype=torch.bool),
    }
    return Routing(**(made | parts))


def meta(num_experts: int = 4) -> LayerMeta:
    return LayerMeta(layer=5, path="p", router="r", num_experts=num_experts, k=None)


def record(route: Routing, alive: Sequence[bool] = (True,) * 4) -> LayerRecord:
    hidden = torch.arange(len(route.valid_T) * 2).reshape(-1, 2).float()
    return LayerRecord(layer=5, routing=route, alive_E=torch.tensor(list(alive)), input_Td=hidden)


def test_wanted_slots_are_moved_together_and_margins_count_what_was_wanted() -> None:
    recorder = RoutingRecorder(3, sample=np.array([0, 2], np.int32))
    recorder.add(np.array([2, 0, 1]), [record(routing())])  # rows arrive in another order than tokens
    layer = recorder.layers([meta()])[5]
    assert layer.expert_TK.tolist() == [[0, 1], [-1, -1], [3, 1]]
    assert layer.sent_TK.tolist() == [[True, False], [False, False], [True, True]]
    assert np.allclose(layer.gate_TK, [[1.0, 0.0], [0.0, 0.0], [0.7, 0.3]])
    p = routing().probs_TE.numpy()
    assert layer.margin_T[2] == pytest.approx(p[0, 1] - p[0, 2])  # chosen 3 and 1, best not chosen 2: negative
    assert layer.margin_T[0] == pytest.approx(p[1, 1] - p[1, 2])
    assert np.isnan(layer.margin_T[1])
    assert layer.hidden_nd is not None and layer.hidden_nd.tolist() == [[2.0, 3.0], [0.0, 1.0]]


def test_margin_is_nan_where_everything_was_chosen_or_nothing_else_could_be() -> None:
    everything = torch.tensor([[0, 1, 2, 3]]).expand(3, 4)
    yes = torch.ones((3, 4), dtype=torch.bool)
    full = routing(expert_TK=everything, wanted_TK=yes, sent_TK=yes, gate_TK=torch.full((3, 4), 0.25))
    recorder = RoutingRecorder(3)
    recorder.add(np.arange(3), [record(full)])
    assert np.isnan(recorder.layers([meta()])[5].margin_T).all()
    masked = routing(scores_TE=routing().probs_TE.masked_fill(torch.tensor([True, False, True, False]), -torch.inf))
    recorder = RoutingRecorder(3)
    recorder.add(np.arange(3), [record(masked)])
    assert np.isnan(recorder.layers([meta()])[5].margin_T[0])  # 3 and 1 were chosen, 0 and 2 could not be


@pytest.mark.parametrize("alive", [(True, True, False, True), (True, True, False, False)])
def test_dead_slots_are_no_experts_and_the_others_keep_their_ids(alive: tuple[bool, ...], tmp_path: Path) -> None:
    dead = ~torch.tensor(alive)
    base = routing()
    probs = base.logits_TE.masked_fill(dead, -torch.inf).softmax(-1)
    expert, wanted = base.expert_TK, base.wanted_TK & ~dead[base.expert_TK]
    route = replace(
        base, logits_TE=base.logits_TE.masked_fill(dead, -torch.inf), probs_TE=probs, scores_TE=probs,
        wanted_TK=wanted, sent_TK=base.sent_TK & wanted, gate_TK=base.gate_TK * (base.sent_TK & wanted),
    )  # fmt: skip
    recorder = RoutingRecorder(3)
    recorder.add(np.arange(3), [record(route, alive)])
    layer = recorder.layers([meta(sum(alive))])[5]
    assert layer.meta.alive == ((0, 1, 3) if alive[3] else None)
    assert layer.meta.width == (4 if alive[3] else 2) == layer.mean_probs_E.size
    assert set(layer.expert_TK[layer.wanted_TK].tolist()) == set(expert[wanted].tolist())
    assert alive_experts(layer).tolist() == np.flatnonzero(alive).tolist()
    assert layer.logits_TE is not None and layer.logits_TE.shape == (3, layer.meta.width)
    assert np.isneginf(layer.logits_TE[:, 2:3]).all() and np.isfinite(layer.logits_TE[:, [0, 1]]).all()
    assert layer.mean_probs_E.sum() == pytest.approx(1.0)
    trace = make_trace(tokens=3, layers=1, docs=1, sample=3)
    whole = replace(trace, layers={5: layer}, meta=replace(trace.meta, layers=(layer.meta,)), sample=None)
    write_trace(whole, tmp_path / "gaps.safetensors")
    read = read_trace(tmp_path / "gaps.safetensors").layers[5]
    assert read.meta == layer.meta and (read.expert_TK == layer.expert_TK).all()


@pytest.mark.parametrize("alive", [(0, 1), (0, 2, 1), (-1, 0, 3), (0, 0, 3)])
def test_a_file_that_names_its_alive_experts_wrongly_is_refused(alive: tuple[int, ...], tmp_path: Path) -> None:
    trace = make_trace(tokens=8, layers=1, experts=4, docs=1, sample=0)
    layer = replace(trace.layers[0], meta=replace(trace.layers[0].meta, num_experts=3, alive=alive))
    whole = replace(trace, layers={0: layer}, meta=replace(trace.meta, layers=(layer.meta,)))
    write_trace(whole, tmp_path / "wrong.safetensors")
    with pytest.raises(InputError, match="layer 0 does not name its 3 alive experts"):
        read_trace(tmp_path / "wrong.safetensors")


def test_padding_rows_are_left_out() -> None:
    route = routing(valid_T=torch.tensor([True, True, False]))
    recorder = RoutingRecorder(2)
    recorder.add(np.array([1, 0]), [record(route)])
    layer = recorder.layers([meta()])[5]
    assert layer.expert_TK.tolist() == [[0, 1], [3, 1]]
    assert layer.mean_probs_E == pytest.approx(routing().probs_TE[:2].mean(0).numpy())
    with pytest.raises(ValueError, match="3 tokens, but block 5 saw 2 valid rows"):
        recorder.add(np.arange(3), [record(route)])


def test_tokens_that_were_not_captured_and_nothing_to_capture_are_refused() -> None:
    recorder = RoutingRecorder(4)
    recorder.add(np.arange(3), [record(routing())])
    with pytest.raises(InputError, match="block 5 was not captured for 1 tokens"):
        recorder.layers([meta()])
    with pytest.raises(InputError, match="nothing to show"):
        RoutingRecorder(3).layers([meta()])
    with pytest.raises(InputError, match="no tokens"):
        record_trace(opened(), token_set(()))


@dataclass
class Sees:
    """A model that records what it is fed."""

    kind: str = "text"
    max_seq: int = 32
    layers: tuple[LayerMeta, ...] = (meta(),)
    fed: list[Batch] = field(default_factory=list)
    label: LabelSource | None = None

    def records_alone(self, batch: Batch) -> list[LayerRecord]:
        self.fed.append(batch)
        one = routing()
        rows = torch.zeros(batch.valid.numel(), dtype=torch.int64)
        return [record(Routing(**{k: v[rows] for k, v in vars(one).items() if isinstance(v, torch.Tensor)}))]

    def describe(self) -> dict[str, Any]:
        return {"name": "sees"}

    def self_check(self) -> tuple[dict[str, Any], ...]:
        return ()

    def reset_check(self) -> None: ...

    def check_tokens(self, tokens: TokenSet) -> tuple[dict[str, Any], ...]:
        return ()


def test_the_model_is_fed_every_token_once_without_padding() -> None:
    model, tokens = Sees(), token_set()
    trace = record_trace(model, tokens, batch_tokens=64)  # type: ignore[arg-type]
    assert all(batch.valid.all() for batch in model.fed)
    assert sorted(int(i) for batch in model.fed for i in batch.inputs.flatten()) == sorted(tokens.inputs.tolist())
    assert trace.meta.model["recording"] == {"max_seq": 32, "batch_tokens": 64, "seed": 0, "sampled": "uniformly"}
