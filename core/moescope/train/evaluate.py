"""Loss on held-out data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from moescope.model import Batch, Transformer, loss, num_targets


@torch.no_grad()
def evaluate(model: Transformer, batches: Sequence[Batch], step: int = 0) -> dict[str, Any]:
    """Payload of an `eval` event: nats per target over `batches` in evaluation mode, accuracy for classes."""
    device = next(model.parameters()).device
    total, correct = torch.zeros((), device=device), torch.zeros((), dtype=torch.int64, device=device)
    targets = tokens = 0
    training = model.training
    model.eval()
    try:
        for batch in batches:
            count = num_targets(batch)
            targets, tokens = targets + count, tokens + int(batch.valid.sum())
            batch = batch.to(device)
            output = model(batch, step)
            total += loss(output, batch) * count
            if model.config.head == "class":
                correct += (output.logits.argmax(-1) == batch.target).sum()
    finally:
        model.train(training)
    payload: dict[str, Any] = {"loss": total.item() / max(targets, 1), "tokens": tokens}
    if model.config.head == "class":
        payload["accuracy"] = correct.item() / max(targets, 1)
    return payload
