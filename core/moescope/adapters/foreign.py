"""A foreign model: transformers runs it, hooks take what its routers and experts saw and did, and it is verified.

What the experts were called with is what counts; the router's own output is compared with it, and with a recomputation
from the captured input (`rules.py`).
"""

from __future__ import annotations

from typing import Any, Final

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from moescope.adapters.architectures import Architecture
from moescope.adapters.capture import Call, decided, hooked
from moescope.adapters.card import Card
from moescope.adapters.model import OpenModel
from moescope.adapters.rules import RULES
from moescope.adapters.selfcheck import COMMON, SelfCheck, check_common, differing_rows
from moescope.errors import InputError
from moescope.model.batch import Batch
from moescope.objectives.base import LayerRecord
from moescope.routers.base import Routing
from moescope.trace.schema import LayerMeta

TITLES: Final = {
    **COMMON,
    "executed": "the experts were called with exactly the router's indices and gates ({rows} rows).",
    "logits": "router logits recomputed from captured input and weights are equal bit for bit ({rows} rows).",
    "selection": "the top-k of the recomputed score is what was chosen ({rows} rows).",
    "gates": "gates recomputed from the logits are equal bit for bit ({rows} rows).",
    "path": "plain PyTorch modules ran: not compiled, no kernel from a hub, no CUDA graph ({rows} modules).",
}


class ForeignModel(OpenModel):
    """A transformers model of a family in the table."""

    def __init__(self, module: nn.Module, row: Architecture, card: Card, tokenizer: Tokenizer | None) -> None:
        super().__init__(card, module, tokenizer, SelfCheck(TITLES))
        self._row = row
        config: Any = module.config
        flag = row.renormalise
        self._renormalise = flag if isinstance(flag, bool) else bool(getattr(config, flag))

    def records(self, batch: Batch) -> list[LayerRecord]:
        return self._run(batch, [batch])

    def records_alone(self, batch: Batch) -> list[LayerRecord]:
        """As `records`, but each sequence in a forward pass of its own, as a hook on a plain run would see it.

        How many rows an expert computes at once changes the last bits of its output, so a batch is not its sequences.
        """
        if batch.position is not None or not bool(batch.valid.all()):
            return self.records(batch)
        rows = range(batch.valid.shape[0])
        return self._run(batch, [Batch(batch.inputs[i : i + 1], batch.valid[i : i + 1]) for i in rows])

    def _run(self, batch: Batch, parts: list[Batch]) -> list[LayerRecord]:
        self.require_readable(batch)
        if self._check.fresh:
            self._check_path()
        layers = [meta.layer for meta in self.layers]
        with self._evaluating():
            with hooked(self.module, self._row, layers) as calls:
                for part in parts:
                    self._forward(part.to(self.device))
            valid_T = batch.valid.flatten().to(self.device)
            whole = [meta for meta in self.layers if len(calls[meta.layer]) == len(parts)]
            records = [self._record(meta, calls[meta.layer], valid_T) for meta in whole]
            times = {layer: len(seen) / len(parts) for layer, seen in calls.items()}
            check_common(self._check, records, {meta.layer: meta.k for meta in self.layers}, times, int(valid_T.sum()))
        return records

    def _forward(self, batch: Batch) -> None:
        """Run the model below its head, whose logits over the vocabulary nobody needs here."""
        body: nn.Module = getattr(self.module, str(getattr(self.module, "base_model_prefix", "")), self.module)
        mask = None if bool(batch.valid.all()) else batch.valid.long()
        body(input_ids=batch.inputs, attention_mask=mask, position_ids=batch.position, use_cache=False)

    def _record(self, meta: LayerMeta, calls: list[Call], valid_T: Tensor) -> LayerRecord:
        """What the block did, after checking it."""
        found = decided(self._row, calls, meta.num_experts, meta.k or 0)
        if found is None or len(found.logits_TE) != len(valid_T):
            raise InputError(
                f"{self.card.name}: the router of block {meta.layer} did not return what the table states for "
                f"{self._row.title} (contract {self._row.contract}, {len(valid_T):,} rows)."
            )
        rows, where = len(valid_T), f"in block {meta.layer}"
        index_Tk, gate_Tk = found.used or (found.index_Tk, found.gate_Tk)
        wrong = max(differing_rows(index_Tk, found.index_Tk), differing_rows(gate_Tk, found.gate_Tk))
        self._check.note("executed", rows=rows, faults=wrong if found.used else rows, where=where)
        weight: Any = self.module.get_submodule(meta.path).weight
        again_TE = torch.cat([F.linear(input_Td, weight) for input_Td in found.inputs])
        self._check.note("logits", rows=rows, faults=differing_rows(again_TE, found.logits_TE), where=where)
        gates_in = torch.float32 if self._row.gates_in == "float32" else again_TE.dtype
        decision = RULES[self._row.rule](again_TE, index_Tk.shape[1], self._renormalise, gates_in)
        self._check.note("selection", rows=rows, faults=differing_rows(decision.index_Tk, index_Tk), where=where)
        self._check.note("gates", rows=rows, faults=differing_rows(decision.gate_Tk, gate_Tk), where=where)
        wanted_TK = valid_T[:, None].expand_as(index_Tk)
        routing = Routing(
            logits_TE=found.logits_TE.float(),
            probs_TE=decision.probs_TE,
            scores_TE=decision.scores_TE,
            expert_TK=index_Tk,
            gate_TK=gate_Tk.float().where(wanted_TK, 0.0),
            wanted_TK=wanted_TK,
            sent_TK=wanted_TK,
            valid_T=valid_T,
        )
        alive_E = torch.ones(meta.num_experts, dtype=torch.bool, device=index_Tk.device)
        return LayerRecord(layer=meta.layer, routing=routing, alive_E=alive_E, input_Td=torch.cat(found.inputs))

    def _check_path(self) -> None:
        odd = [
            name
            for name, module in self.module.named_modules()
            if module._compiled_call_impl is not None or hasattr(module, "_orig_mod")
        ]
        hub = bool(getattr(self.module, "use_kernels", False))
        where = f"module {odd[0]!r} is compiled" if odd else "kernels from a hub are switched on"
        self._check.note("path", rows=sum(1 for _ in self.module.modules()), faults=len(odd) + hub, where=where)
