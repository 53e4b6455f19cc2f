"""Traces of the probe while the model trains."""

from __future__ import annotations

from pathlib import Path

from moescope.adapters.ours import TransformerModel, card_of
from moescope.model import Transformer
from moescope.trace.io import write_trace
from moescope.trace.recorder import record_trace
from moescope.train.config import RunConfig
from moescope.train.prepare import Prepared


def write_snapshot(path: Path, model: Transformer, data: Prepared, config: RunConfig, name: str) -> None:
    """Trace the probe through the model as it is now, and write the trace to `path`; the model is left as it was."""
    card = card_of(model, name, tokenizer="none" if data.tokenizer is None else "tokenizer.json")
    opened = TransformerModel(model, card, data.tokenizer)
    probe = config.probe
    trace = record_trace(opened, data.probe, logits=probe.logits, sample=probe.sample, seed=config.seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_trace(trace, path)
