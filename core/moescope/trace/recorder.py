"""Recording: tokens through a model, every routing decision into a Trace, batch by batch.

Shapes: T tokens of the trace, N of one batch, E experts (ids are the model's slots, up to the last alive one), K slots,
n sampled tokens, d width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from moescope import ranks
from moescope.data.base import Kind, LabelSource, TokenSet
from moescope.errors import InputError
from moescope.model.batch import Batch
from moescope.model.batching import collate, sequences
from moescope.objectives.base import LayerRecord
from moescope.routers.base import Routing
from moescope.trace.schema import LayerMeta, LayerTrace, Trace, TraceMeta

Progress = Callable[[int, int], None]
_PER_TOKEN = frozenset(
    ("logits_TE", "probs_TE", "scores_TE", "expert_TK", "gate_TK", "wanted_TK", "sent_TK", "valid_T")
)


class Traceable(Protocol):
    """What `record_trace` needs of a model; `moescope.adapters.OpenModel` is one."""

    @property
    def kind(self) -> Kind: ...
    @property
    def max_seq(self) -> int: ...
    @property
    def layers(self) -> tuple[LayerMeta, ...]: ...
    @property
    def label(self) -> LabelSource | None: ...

    def records_alone(self, batch: Batch) -> Sequence[LayerRecord]: ...
    def describe(self) -> Mapping[str, Any]: ...
    def self_check(self) -> tuple[Mapping[str, Any], ...]: ...
    def reset_check(self) -> None: ...
    def check_tokens(self, tokens: TokenSet) -> tuple[Mapping[str, Any], ...]: ...


def record_trace(
    model: Traceable,
    tokens: TokenSet,
    *,
    logits: bool = True,
    sample: int = 2048,
    seed: int = 0,
    batch_tokens: int = 4096,
    progress: Progress | None = None,
) -> Trace:
    """Run `tokens` through `model` and keep every routing decision.

    Documents are cut into sequences of at most `model.max_seq` positions. Sequences of one length go together, up to
    `batch_tokens` tokens a batch, so nothing is ever padded.

    logits: also keep the raw router output. sample: router inputs are kept for this many tokens, drawn uniformly with
    `seed`. progress: called with tokens done and T. Raises `InputError` for tokens that the model cannot read.
    """
    chunks = _chunks(model, tokens)
    rng = np.random.default_rng(seed)
    num_sampled = min(sample, tokens.num_tokens)
    sampled = np.sort(rng.choice(tokens.num_tokens, num_sampled, replace=False)).astype(np.int32)
    recorder = RoutingRecorder(tokens.num_tokens, logits=logits, sample=sampled)
    model.reset_check()
    done = 0
    generators = range(torch.cuda.device_count()) if torch.cuda.is_available() else None  # named: torch does not warn
    with torch.random.fork_rng(generators), ranks.alone():
        for group in batches(chunks, batch_tokens):
            torch.manual_seed(seed)  # a router that is random is drawn once, for all of the trace
            rows = np.concatenate([np.arange(start, start + length) for start, length in group])
            recorder.add(rows, model.records_alone(collate(tokens, group, label=model.label)))
            done += len(rows)
            if progress is not None:
                progress(done, tokens.num_tokens)
    about = {"max_seq": model.max_seq, "batch_tokens": batch_tokens, "seed": seed, "sampled": "uniformly"}
    layers = recorder.layers(model.layers)
    meta = TraceMeta(
        model={**model.describe(), "recording": about},
        data=dict(tokens.source),
        kind=tokens.kind,
        layers=tuple(layer.meta for layer in layers.values()),
        self_check=(*model.self_check(), *model.check_tokens(tokens)),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    position = np.concatenate([np.arange(length, dtype=np.int32) for _, length in chunks])
    return _assemble(meta, tokens, position, layers, sampled)


def _assemble(
    meta: TraceMeta, tokens: TokenSet, position: np.ndarray, layers: Mapping[int, LayerTrace], sampled: np.ndarray
) -> Trace:
    return Trace(
        meta=meta,
        doc=tokens.doc.astype(np.int32),
        position=position,
        labels=dict(tokens.labels),
        layers=layers,
        token_id=tokens.inputs.astype(np.int32) if tokens.kind == "text" else None,
        start=tokens.start,
        end=tokens.end,
        text=tokens.text,
        images=tokens.images,
        sample=sampled,
    )


def _chunks(model: Traceable, tokens: TokenSet) -> list[tuple[int, int]]:
    if not tokens.num_tokens:
        raise InputError("there are no tokens to trace.")
    if tokens.kind != model.kind:
        raise InputError(f"the model reads {model.kind}, and the data are {tokens.kind}.")
    longest = int(np.unique(tokens.doc, return_counts=True)[1].max())
    if tokens.kind != "text" and longest > model.max_seq:
        raise InputError(f"an item of {longest} {tokens.kind} is longer than the {model.max_seq} that the model reads.")
    return sequences(tokens, model.max_seq)


def batches(chunks: Sequence[tuple[int, int]], batch_tokens: int) -> Iterator[list[tuple[int, int]]]:
    """Groups of chunks of equal length with at most `batch_tokens` tokens (one chunk at least), longest first."""
    by_length: dict[int, list[tuple[int, int]]] = {}
    for chunk in chunks:
        by_length.setdefault(chunk[1], []).append(chunk)
    for length in sorted(by_length, reverse=True):
        group = by_length[length]
        at_once = max(batch_tokens // length, 1)
        for first in range(0, len(group), at_once):
            yield group[first : first + at_once]


@dataclass
class _Store:
    """One layer's arrays while they fill. `alive` are the slots that hold an expert."""

    alive: np.ndarray
    expert_TK: np.ndarray
    gate_TK: np.ndarray
    sent_TK: np.ndarray
    entropy_T: np.ndarray
    margin_T: np.ndarray
    probs_E: np.ndarray
    logits_TE: np.ndarray | None
    hidden_nd: np.ndarray | None
    filled_T: np.ndarray


@dataclass
class RoutingRecorder:
    """Gathers what MoE layers did to T tokens, from any number of batches in any order.

    Slots that hold nothing are -1; as many slots are kept as any token used. An expert's id is the number of its slot
    among the model's, so that it keeps its id when others die.
    """

    num_tokens: int
    logits: bool = True
    sample: np.ndarray | None = None
    _stores: dict[int, _Store] = field(default_factory=dict)

    def add(self, rows: np.ndarray, records: Sequence[LayerRecord]) -> None:
        """Take one batch: `rows` [N] are the tokens, in [0, T), that its valid positions are, in order."""
        for record in records:
            valid_N = record.routing.valid_T
            if int(valid_N.sum()) != len(rows):
                raise ValueError(f"{len(rows)} tokens, but block {record.layer} saw {int(valid_N.sum())} valid rows")
            if record.layer not in self._stores:
                self._stores[record.layer] = self._new_store(record)
            self._fill(self._stores[record.layer], rows, record, None if bool(valid_N.all()) else valid_N)

    def layers(self, metas: Sequence[LayerMeta]) -> dict[int, LayerTrace]:
        """The layers that were captured, by block. Raises `InputError` if any lacks a token, or none was captured."""
        known = {meta.layer: meta for meta in metas}
        made: dict[int, LayerTrace] = {}
        for layer in sorted(self._stores):
            store = self._stores[layer]
            if not store.filled_T.all():
                raise InputError(f"block {layer} was not captured for {int((~store.filled_T).sum()):,} tokens.")
            made[layer] = LayerTrace(
                meta=replace(known[layer], alive=gaps(store.alive)),
                expert_TK=store.expert_TK,
                gate_TK=store.gate_TK,
                sent_TK=store.sent_TK,
                entropy_T=store.entropy_T,
                margin_T=store.margin_T,
                mean_probs_E=store.probs_E / self.num_tokens,
                logits_TE=store.logits_TE,
                hidden_nd=store.hidden_nd,
            )
        if not made:
            raise InputError("no block with experts was captured, so there is nothing to show.")
        return made

    def _new_store(self, record: LayerRecord) -> _Store:
        alive = np.flatnonzero(record.alive_E.cpu().numpy())
        total, width, slots = self.num_tokens, record.input_Td.shape[-1], int(alive[-1]) + 1
        return _Store(
            alive=alive,
            expert_TK=np.full((total, 1), -1, np.int32),
            gate_TK=np.zeros((total, 1), np.float32),
            sent_TK=np.zeros((total, 1), bool),
            entropy_T=np.zeros(total, np.float32),
            margin_T=np.full(total, np.nan, np.float32),
            probs_E=np.zeros(slots, np.float64),
            logits_TE=np.full((total, slots), -np.inf, np.float32) if self.logits else None,
            hidden_nd=None if self.sample is None else np.zeros((len(self.sample), width), np.float32),
            filled_T=np.zeros(total, bool),
        )

    def _fill(self, store: _Store, rows: np.ndarray, record: LayerRecord, valid_N: Tensor | None) -> None:
        routing = record.routing if valid_N is None else _only(record.routing, valid_N)
        slots = store.probs_E.shape[0]
        expert, gate, sent = _compact(routing)
        if expert.shape[1] > store.expert_TK.shape[1]:
            _widen(store, expert.shape[1])
        used = expert.shape[1]
        store.expert_TK[rows, :used] = expert.cpu().numpy()
        store.gate_TK[rows, :used] = gate.cpu().numpy()
        store.sent_TK[rows, :used] = sent.cpu().numpy()
        probs_NE = routing.probs_TE[:, :slots]
        store.entropy_T[rows] = torch.special.entr(probs_NE).sum(dim=-1).cpu().numpy()
        store.margin_T[rows] = _margin(routing).cpu().numpy()
        store.probs_E += probs_NE.sum(dim=0, dtype=torch.float64).cpu().numpy()
        if store.logits_TE is not None:
            store.logits_TE[np.ix_(rows, store.alive)] = routing.logits_TE.cpu().numpy()[:, store.alive]
        store.filled_T[rows] = True
        if store.hidden_nd is not None and self.sample is not None:
            at = np.minimum(np.searchsorted(self.sample, rows), len(self.sample) - 1)
            kept = np.flatnonzero(self.sample[at] == rows) if len(self.sample) else np.zeros(0, np.int64)
            input_Nd = record.input_Td if valid_N is None else record.input_Td[valid_N]
            picked = input_Nd[torch.from_numpy(kept).to(input_Nd.device)]
            store.hidden_nd[at[kept]] = picked.float().cpu().numpy()


def gaps(alive: np.ndarray) -> tuple[int, ...] | None:
    """What `LayerMeta.alive` says of these ids, ascending: None where there are no gaps."""
    return None if alive.size == alive[-1] + 1 else tuple(alive.tolist())


def _only(routing: Routing, valid_N: Tensor) -> Routing:
    """The valid rows; what is not of tokens stays behind."""
    rows = {name: value[valid_N] for name, value in vars(routing).items() if name in _PER_TOKEN}
    return Routing(**rows)


def _compact(routing: Routing) -> tuple[Tensor, Tensor, Tensor]:
    """Wanted slots first, in their order, and no column that nobody uses. Empty slots hold expert -1, gate 0."""
    expert, gate, sent, wanted = routing.expert_TK, routing.gate_TK, routing.sent_TK, routing.wanted_TK
    if bool((wanted[:, 1:] & ~wanted[:, :-1]).any()):
        order = torch.argsort(~wanted, dim=1, stable=True)
        expert, gate, sent, wanted = (part.gather(1, order) for part in (expert, gate, sent, wanted))
    used = max(int(wanted.sum(dim=1).max()), 1) if wanted.numel() else 1
    expert, gate, sent, wanted = (part[:, :used] for part in (expert, gate, sent, wanted))
    return expert.where(wanted, -1), gate.where(sent, 0.0), sent & wanted


def _widen(store: _Store, used: int) -> None:
    more = ((0, 0), (0, used - store.expert_TK.shape[1]))
    store.expert_TK = np.pad(store.expert_TK, more, constant_values=-1)
    store.gate_TK = np.pad(store.gate_TK, more)
    store.sent_TK = np.pad(store.sent_TK, more)


def _margin(routing: Routing) -> Tensor:
    """float32 [N]: lowest score chosen minus highest score not chosen; NaN where either set is empty."""
    scores, wanted, expert = routing.scores_TE, routing.wanted_TK, routing.expert_TK
    chosen = torch.zeros_like(scores, dtype=torch.int8).scatter_add_(1, expert, wanted.to(torch.int8)) > 0
    lowest = scores.gather(1, expert).masked_fill(~wanted, torch.inf).amin(dim=1)
    highest = scores.masked_fill(chosen, -torch.inf).amax(dim=1)
    return torch.where(torch.isfinite(lowest) & torch.isfinite(highest), lowest - highest, torch.nan).float()
