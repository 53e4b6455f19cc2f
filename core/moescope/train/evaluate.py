"""Loss on held-out data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from moescope import ranks
from moescope.model import Batch, Transformer, loss, num_targets


@torch.no_grad()
def evaluate(
    model: Transformer,
    batches: Sequence[Batch],
    step: int = 0,
    num_steps: int | None = None,
    loss_from: int = 0,
    kept: Sequence[Tensor] | None = None,
) -> dict[str, Any]:
    """Payload of an `eval` event: mean loss per target over `batches` in evaluation mode, accuracy for classes.

    Where the router is random, the mean over `model.eval_draws` passes. Next tokens count from position `loss_from` on,
    or from where the router is causal, if that is later. `kept`: other targets of the same batches, whose loss is told
    as `kept`.
    """
    device = next(model.parameters()).device
    first, draws, classes = max(loss_from, model.causal_from), model.eval_draws, model.config.head == "class"
    totals = torch.zeros(2, device=device)
    counts, tokens = [0, 0], 0
    correct = torch.zeros((), dtype=torch.int64, device=device)
    training = model.training
    model.eval()
    try:
        with ranks.alone():
            for index, batch in enumerate(batches):
                scored = [batch] if kept is None else [batch, replace(batch, target=kept[index])]
                scored = [each.scored_from(first) for each in scored]
                sizes = [num_targets(each) for each in scored]
                scored = [each.to(device) for each in scored]
                tokens += int(batch.valid.sum())
                for which, size in enumerate(sizes):
                    counts[which] += size
                for _ in range(draws):
                    output = model(scored[0], step, num_steps)
                    for which, each in enumerate(scored):
                        totals[which] += loss(output, each) * sizes[which]
                    if classes:
                        correct += (output.logits.argmax(-1) == scored[0].target).sum()
    finally:
        model.train(training)
    mean, mean_kept = (total / max(count * draws, 1) for total, count in zip(totals.tolist(), counts, strict=True))
    payload: dict[str, Any] = {"loss": mean, "tokens": tokens}
    if classes:
        payload["accuracy"] = correct.item() / max(counts[0] * draws, 1)
    return payload if kept is None else payload | {"kept": mean_kept}
