"""What a capture verifies about itself while it goes on. A check that fails stays failed and says where."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from moescope.objectives.base import LayerRecord


@dataclass
class _Tally:
    title: Callable[[int], str]
    rows: int = 0
    faults: int = 0
    first: str = ""


@dataclass
class SelfCheck:
    """Named checks, each summed over batches and layers.

    `titles` gives every check's sentence for when it passed, with `{rows}` for what was compared; a check that compared
    nothing has failed.
    """

    titles: Mapping[str, str]
    _tallies: dict[str, _Tally] = field(default_factory=dict)

    def reset(self) -> None:
        self._tallies.clear()

    @property
    def fresh(self) -> bool:
        """Whether nothing was noted since the last reset."""
        return not self._tallies

    def note(self, name: str, *, rows: int, faults: int = 0, where: str = "") -> None:
        """Add `rows` compared to check `name`, `faults` of them wrong; the first fault's place is kept."""
        template = self.titles[name]
        tally = self._tallies.setdefault(name, _Tally(title=lambda n: template.format(rows=f"{n:,}")))
        tally.rows += rows
        if faults and not tally.faults:
            tally.first = where
        tally.faults += faults

    def results(self) -> tuple[dict[str, Any], ...]:
        """`{name, passed, detail}` for every check, in the order of `titles`; empty before the first batch."""
        if not self._tallies:
            return ()
        return tuple(self._result(name) for name in self.titles)

    def _result(self, name: str) -> dict[str, Any]:
        tally = self._tallies.get(name)
        if tally is None or not tally.rows:
            return {"name": name, "passed": False, "detail": "nothing was compared."}
        if tally.faults:
            detail = f"{tally.faults:,} of {tally.rows:,} are wrong, first {tally.first}."
            return {"name": name, "passed": False, "detail": detail}
        return {"name": name, "passed": True, "detail": tally.title(tally.rows)}


COMMON = {
    "layers": "every block that has a router among the weights was captured once in every pass ({rows} captures).",
    "counts": "per-expert counts sum to tokens times experts per token, less drops ({rows} sums).",
    "padding": "tokens are counted, padding is not ({rows} tokens).",
    "contract": "experts exist, none twice for a token, gates are 0 where nothing was sent ({rows} rows).",
}
"""Checks that hold for every model, by name."""


def differing_rows(a_TX: Tensor, b_TX: Tensor) -> int:
    """Rows in which two tensors of T rows are not equal bit for bit; all of them if the shapes differ."""
    if a_TX.shape != b_TX.shape:
        return int(max(a_TX.shape[0], 1))
    if torch.equal(a_TX, b_TX):
        return 0
    return int((a_TX != b_TX).flatten(1).any(dim=1).sum())


def check_common(
    check: SelfCheck,
    records: list[LayerRecord],
    expected: Mapping[int, int | None],
    times: Mapping[int, float],
    valid: int,
) -> None:
    """The checks of `COMMON` on one batch.

    expected: block to k (None where it varies). times: how often each block was captured per forward pass.
    valid: tokens that were fed.
    """
    wrong = sorted(layer for layer in set(times) | set(expected) if layer not in expected or times.get(layer) != 1)
    where = f"block {wrong[0]}, captured {times.get(wrong[0], 0):g} times a forward pass" if wrong else ""
    check.note("layers", rows=len(expected), faults=len(wrong), where=where)
    for record in records:
        _check_record(check, record, expected.get(record.layer), valid)


def _check_record(check: SelfCheck, record: LayerRecord, k: int | None, valid: int) -> None:
    routing, where = record.routing, f"in block {record.layer}"
    wanted, sent, expert = routing.wanted_TK, routing.sent_TK, routing.expert_TK
    slots = routing.num_experts
    rows = expert.shape[0]
    in_range = (expert >= 0) & (expert < slots)
    safe = expert.clamp(0, slots - 1)
    counts = torch.zeros(slots, dtype=torch.int64, device=expert.device)
    counts.index_put_((safe[sent],), torch.ones((), dtype=torch.int64, device=expert.device), accumulate=True)
    total, kept, wished = int(counts.sum()), int(sent.sum()), int(wanted.sum())
    drops = wished - int((wanted & sent).sum())
    due = wished if k is None else valid * k
    fine = total == kept == due - drops
    note = f"{where}: {total:,} assignments, expected {due:,} less {drops:,} drops"
    check.note("counts", rows=1, faults=int(not fine), where=note)
    stray = int((~routing.valid_T & wanted.any(dim=1)).sum()) + abs(int(routing.valid_T.sum()) - valid)
    check.note("padding", rows=valid, faults=stray, where=where)
    twice = torch.zeros((rows, slots), dtype=torch.int8, device=expert.device)
    twice.scatter_add_(1, safe, wanted.to(torch.int8))
    bad = (wanted & ~(in_range & record.alive_E[safe])).any(dim=1) | (twice > 1).any(dim=1)
    bad |= (sent & ~wanted).any(dim=1) | ((routing.gate_TK != 0) & ~sent).any(dim=1)
    bad |= ~torch.isfinite(routing.gate_TK).all(dim=1)
    bad |= torch.isnan(routing.logits_TE).any(dim=1)
    check.note("contract", rows=rows, faults=int(bad.sum()), where=where)
