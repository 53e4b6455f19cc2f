"""A growing run whose truth is known: who owns which topic when, and the events and snapshots that follow from it.

`growth_events()` is a finished run of two MoE layers (blocks 1 and 3) in which every kind of change happens;
`growth_snapshots()` are the same probe tokens at four of its steps; `busy_events()` is a long run with 20 experts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moescope.data.base import Labels
from moescope.events import Event
from moescope.trace.schema import LayerMeta, LayerTrace, Trace, TraceMeta
from synthetic import WORDS

LAYERS = (1, 3)
SLOTS, ALIVE, STEPS = 8, 3, 600
SNAPSHOTS = (150, 300, 450, 600)
DOMAINS = ("python", "cpp", "english", "licence")
TOPICS = tuple(f"{domain} {part}" for domain in DOMAINS for part in ("code", "words"))
ALPHA, DELTA = 0.01, 0.05


@dataclass(frozen=True)
class Change:
    """One slot comes alive (`parent` is set) and takes topics, or dies (`heir` gets its topics)."""

    step: int
    layer: int
    expert: int
    topics: tuple[int, ...] = ()
    parent: int | None = None
    heir: int | None = None
    why: str = "drift"
    judged: int | None = None
    """Step at which an acceptor keeps it; a removal by the acceptor is a Change of its own, why `removed`."""


CHANGES = (
    Change(60, 1, 3, (4, 5), parent=1, judged=80),
    Change(90, 3, 3, (2, 3), parent=0, judged=110),
    Change(140, 1, 4, (1,), parent=0, judged=160),
    Change(200, 1, 5, (5,), parent=3),
    Change(220, 1, 5, heir=3, why="removed"),
    Change(260, 1, 5, (5,), parent=3, judged=280),
    Change(270, 3, 4, (5,), parent=1, why="coverage", judged=290),
    Change(330, 1, 6, (7,), parent=2, judged=350),
    Change(420, 1, 6, heir=2, why="end of growth"),
    Change(420, 3, 2, heir=1, why="never reached"),
    Change(480, 1, 6, (3,), parent=1, why="by hand"),
    Change(520, 3, 3, heir=0, why="by hand"),
)
OWNERS = {1: {0: (0, 1), 1: (2, 3, 4, 5), 2: (6, 7)}, 3: {0: (0, 1, 2, 3), 1: (4, 5, 6), 2: (7,)}}
GROWN = 420
"""The step at which growth ends."""


class Story:
    """Which topics each slot of a layer owns at a step. Of a change at step s, s + 1 is the first step with it."""

    def __init__(
        self, owners: dict[int, dict[int, tuple[int, ...]]] = OWNERS, changes: Sequence[Change] = CHANGES
    ) -> None:
        self.owners, self.changes = owners, sorted(changes, key=lambda change: change.step)

    def at(self, layer: int, step: int) -> dict[int, tuple[int, ...]]:
        """{alive slot: its topics}."""
        now = dict(self.owners[layer])
        for change in self.changes:
            if change.layer != layer or change.step >= step:
                continue
            if change.parent is not None:
                now[change.parent] = tuple(x for x in now[change.parent] if x not in change.topics)
                now[change.expert] = change.topics
            elif change.heir is not None:
                now[change.heir] = (*now[change.heir], *now.pop(change.expert))
        return now

    def load(self, layer: int, step: int, slots: int, topics: int, rng: np.random.Generator) -> list[float]:
        weight_E = np.zeros(slots)
        for expert, owned in self.at(layer, step).items():
            weight_E[expert] = max(0.1, len(owned) / topics * 4) * math.exp(rng.normal(scale=0.06))
        return [float(x) for x in weight_E / weight_E.sum()]


def growth_events(
    steps: int = STEPS, run: str = "r", *, story: Story | None = None, slots: int = SLOTS, seed: int = 0
) -> list[Event]:
    """The log, in order, with ids from 1; without a `snapshot` event, whose files the caller writes."""
    told = story or Story()
    rng = np.random.default_rng(seed)
    layers = tuple(told.owners)
    topics = sum(len(owned) for owned in told.owners[layers[0]].values())
    made = [Event(run=run, step=0, kind="run_started", payload=_started(told, layers, slots, steps))]
    for step in range(1, steps + 1):
        made += [
            Event(run=run, step=step, kind=kind, payload=told_) for kind, told_ in _step(told, step, slots, topics, rng)
        ]
    made.append(Event(run=run, step=steps, kind="run_finished", payload={"loss": _loss(steps, steps), "seconds": 90.0}))
    return [Event(run=e.run, step=e.step, kind=e.kind, payload=e.payload, id=i + 1) for i, e in enumerate(made)]


def busy_events(steps: int = 3000, run: str = "r", seed: int = 3) -> list[Event]:
    """One layer that grows from 2 to 20 experts out of 40 topics, with trials that fail and a detector asked often."""
    rng = np.random.default_rng(seed)
    owners = {2: {0: tuple(range(20)), 1: tuple(range(20, 40))}}
    changes: list[Change] = []
    for step in range(100, 2100, 80):
        now = Story(owners, changes).at(2, step)
        parent = max(now, key=lambda expert: (len(now[expert]), -expert))
        child = next(slot for slot in range(20) if slot not in now) if len(now) < 20 else None
        if child is None or len(now[parent]) < 2:
            break
        half = now[parent][len(now[parent]) // 2 :]
        failed = rng.random() < 0.25
        changes.append(Change(step, 2, child, half, parent=parent, judged=None if failed else step + 40))
        if failed:
            changes.append(Change(step + 40, 2, child, heir=parent, why="removed"))
    return growth_events(steps, run, story=Story(owners, changes), slots=24, seed=seed)


def _loss(step: int, steps: int) -> float:
    return 1.6 + 3.2 * math.exp(-5 * step / steps)


def _started(told: Story, layers: Sequence[int], slots: int, steps: int) -> dict[str, Any]:
    counts = {layer: len(told.owners[layer]) for layer in layers}
    rows = [
        {
            "layer": layer, "path": f"blocks.{layer}.moe.router", "router": "top_p", "num_experts": counts[layer],
            "k": None, "causal": True, "alive": None,
        }
        for layer in layers
    ]  # fmt: skip
    model = {"head": "next_token", "router": "top_p", "num_experts": counts[layers[0]], "max_experts": slots}
    config = {"model": model, "expansion": {"detector": "mass"}, "optim": {"steps": steps}}
    return {"config": config, "params": 120_000, "layers": rows, "data": {"synthetic": True}, "device": "none"}


def _step(
    told: Story, step: int, slots: int, topics: int, rng: np.random.Generator
) -> Iterator[tuple[str, dict[str, Any]]]:
    last = max((change.step for change in told.changes), default=0)
    loss = _loss(step, max(STEPS, last)) + float(rng.normal(scale=0.05))
    values = {"redundancy": 0.002 * math.exp(rng.normal(scale=0.2)), "load_balance": 0.01}
    now = [change for change in told.changes if change.step == step]
    yield "train", {
        "loss": loss, "objectives": values, "lr": 1e-3, "grad_norm": 1.0, "tokens": 512 * step, "seconds": 0.15 * step,
    }  # fmt: skip
    layers = tuple(told.owners)
    if step % 5 == 0:
        rows = []
        for layer in layers:
            load, alive = told.load(layer, step, slots, topics, rng), sorted(told.at(layer, step))
            rows.append({
                "layer": layer, "load": load, "alive": alive, "maxvio": max(load) * len(alive) - 1, "dropped": 0.0,
                "tokens": 512, "experts_per_token": 1.6, "effective_experts": 1.8,
            })  # fmt: skip
        yield "load", {"layers": rows}
    grown = next((c for c in now if c.parent is not None and c.why in ("drift", "coverage")), None)
    if step >= 20 and (step % 10 == 0 or grown is not None) and step < GROWN * (1 if told.owners is OWNERS else 99):
        yield "drift", {"detector": "mass", "layers": [_drift(told, layer, step, rng) for layer in layers]}
    for change in now:
        yield from _changed(told, change, step)
    for change in told.changes:
        if change.judged == step:
            parts = {"layer": change.layer, "parent": change.parent, "child": change.expert, "kept": True}
            yield "acceptance", parts | {
                "acceptor": "nll_mask", "loss_before": loss + 0.12, "loss_after": loss + 0.1, "patience": 3,
                "why": "The held-out loss fell by 1.1 % with the child.", "alive": len(told.at(change.layer, step)),
            }  # fmt: skip
    if step == GROWN and told.owners is OWNERS:
        rows = [
            {"layer": layer, "alive": len(told.at(layer, step + 1)), "used": len(told.at(layer, step + 1))}
            for layer in layers
        ]
        yield "growth_ended", {"why": "phase over", "layers": rows}
    if step % 50 == 0:
        yield "eval", {"loss": loss + 0.1, "tokens": 4096}


def _changed(told: Story, change: Change, step: int) -> Iterator[tuple[str, dict[str, Any]]]:
    layer, loss = change.layer, _loss(step, STEPS)
    alive = len(told.at(layer, step + 1))
    if change.why == "by hand":
        order = "split" if change.parent is not None else "retire"
        expert = change.parent if change.parent is not None else change.expert
        yield "order", {"id": f"o{step}", "order": order, "layer": layer, "expert": expert, "done": True, "why": None}
    if change.parent is not None:
        signals = {"grad_norm": 0.8, "z": 2.9, "p_value": 0.004, "cosine": 0.01} if change.why == "drift" else {}
        yield "expansion", {
            "layer": layer, "parent": change.parent, "child": change.expert, "why": change.why, "detector": "mass",
            "signals": signals, "initialiser": "clone", "preserved": True, "loss_before": loss,
            "output_change": 0.003, "selection_change": 0.12, "alive": alive,
        }  # fmt: skip
    elif change.why == "removed":
        yield "acceptance", {
            "layer": layer, "parent": change.heir, "child": change.expert, "kept": False, "acceptor": "nll_mask",
            "loss_before": loss, "loss_after": loss + 0.001, "why": "Without the child the held-out loss is no higher.",
            "patience": 2, "alive": alive,
        }  # fmt: skip
    else:
        yield "prune", {
            "layer": layer, "expert": change.expert, "why": change.why, "loss_before": loss, "loss_after": loss,
            "alive": alive,
        }  # fmt: skip


def _drift(told: Story, layer: int, step: int, rng: np.random.Generator) -> dict[str, Any]:
    """p falls and the cosine shrinks as an expert comes near to a split; for 30 steps after one p is not defined."""
    experts = sorted(told.at(layer, step))
    mine = [change for change in told.changes if change.layer == layer and change.parent is not None]
    drifted = [change for change in mine if change.why == "drift"]
    chosen = next((change.parent for change in drifted if change.step == step), None)
    norm, z, p, cosine, fired = [], [], [], [], []
    for expert in experts:
        since = max((c.step for c in mine if c.step < step and expert in (c.parent, c.expert)), default=-99)
        coming = [change.step - step for change in drifted if change.parent == expert and change.step >= step]
        near = math.exp(-min(coming, default=1e9) / 40)
        norm.append(0.4 + 0.5 * near + 0.05 * float(rng.random()))
        known = step - since > 30
        value = float(np.clip(0.5 * 10 ** (-2.1 * near) * math.exp(rng.normal(scale=0.5)), 1e-6, 1.0))
        angle = float(abs(rng.normal(scale=0.1 * (1 - 0.9 * near))))
        value, angle = (0.004, 0.01) if expert == chosen else (value, angle)
        p.append(value if known or expert == chosen else None)
        z.append(float(rng.normal() + 3 * near) if known else None)
        cosine.append(angle)
        fired.append(p[-1] is not None and p[-1] <= ALPHA and angle < DELTA)
    note = "At most one growth per layer and step." if sum(fired) > 1 else ""
    made = {
        "layer": layer, "experts": experts, "fired": fired, "chosen": chosen,
        "signals": {"grad_norm": norm, "z": z, "p_value": p, "cosine": cosine},
        "thresholds": {"p_value": {"at": ALPHA, "fires": "below"}, "cosine": {"at": DELTA, "fires": "below"}},
    }  # fmt: skip
    return made | ({"note": note} if note else {})


def growth_snapshots(
    steps: Sequence[int] = SNAPSHOTS, *, tokens: int = 1600, sample: int = 600
) -> list[tuple[int, Trace]]:
    """(step, trace) of the same tokens: what each was routed to by the owners of its topic, sharper as steps go by."""
    return [(step, _snapshot(Story(), step, tokens, sample)) for step in steps]


def _snapshot(told: Story, step: int, tokens: int, sample: int) -> Trace:
    rng = np.random.default_rng(7)  # the same tokens every time
    docs = 40
    doc = np.sort(rng.integers(0, docs, tokens)).astype(np.int32)
    doc[0], doc[-1] = 0, docs - 1
    position = np.concatenate([np.arange(n) for n in np.bincount(doc, minlength=docs)]).astype(np.int32)
    domain = (np.arange(docs) % len(DOMAINS))[doc].astype(np.int16)
    topic = (2 * domain + rng.integers(0, 2, tokens)).astype(np.int16)
    word = (topic.astype(np.int64) + 8 * rng.integers(0, 2, tokens)) % len(WORDS)
    ends = np.cumsum([len(WORDS[i].encode()) for i in word]).astype(np.int32)
    chosen = np.sort(rng.choice(tokens, sample, replace=False)).astype(np.int32)
    centres = rng.normal(size=(len(TOPICS), 16))
    noise = rng.normal(size=(tokens, 16))
    turn = rng.normal(size=(len(TOPICS), 16))
    made: dict[int, LayerTrace] = {}
    for layer in LAYERS:
        hidden = (centres + turn * step / STEPS)[topic] * (0.8 + step / STEPS) + 0.6 * noise
        made[layer] = _layer(told, layer, step, topic, hidden, chosen, np.random.default_rng([step, layer]))
    return Trace(
        meta=TraceMeta(
            model={"name": f"growing, step {step}", "family": "moescope", "params": 0, "d_model": 16, "num_layers": 4},
            data={"corpus": "synthetic", "synthetic": True, "documents": [f"doc{i}" for i in range(docs)]},
            kind="text", layers=tuple(made[layer].meta for layer in LAYERS),
            self_check=({"name": "synthetic", "passed": True, "detail": "made up, nothing was captured"},),
            created="2026-01-01T00:00:00+00:00",
        ),
        doc=doc, position=position, layers=made, token_id=word.astype(np.int32),
        labels={"domain": Labels(domain, DOMAINS, "document"), "topic": Labels(topic, TOPICS, "token")},
        start=np.concatenate([[0], ends[:-1]]).astype(np.int32), end=ends,
        text="".join(WORDS[i] for i in word).encode(), sample=chosen,
    )  # fmt: skip


def _layer(
    told: Story,
    layer: int,
    step: int,
    topic: np.ndarray,
    hidden_Td: np.ndarray,
    chosen: np.ndarray,
    rng: np.random.Generator,
) -> LayerTrace:
    owners = told.at(layer, step)
    alive = np.array(sorted(owners))
    width, total = int(alive[-1]) + 1, len(topic)
    logits = np.full((total, width), -np.inf, np.float32)
    logits[:, alive] = rng.normal(size=(total, alive.size))
    for expert, owned in owners.items():
        logits[np.isin(topic, owned), expert] += 1 + 3 * step / STEPS
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    order = np.argsort(-p, axis=1)[:, :2]
    top = np.take_along_axis(p, order, 1)
    gates = top / top.sum(1, keepdims=True)
    third = np.partition(p, -3, axis=1)[:, -3]
    logs = np.log(p, out=np.zeros_like(p), where=p > 0)
    return LayerTrace(
        meta=LayerMeta(
            layer=layer, path=f"blocks.{layer}.moe.router", router="top_p", num_experts=int(alive.size), k=2,
            alive=None if alive.size == width else tuple(alive.tolist()),
        ),
        expert_TK=order.astype(np.int32), gate_TK=gates.astype(np.float32), sent_TK=np.ones((total, 2), bool),
        entropy_T=-(p * logs).sum(1).astype(np.float32), margin_T=(top[:, 1] - third).astype(np.float32),
        mean_probs_E=p.mean(0).astype(np.float64), logits_TE=logits, hidden_nd=hidden_Td[chosen].astype(np.float32),
    )  # fmt: skip
