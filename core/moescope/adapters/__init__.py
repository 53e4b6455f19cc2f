"""Checkpoints, ours and foreign: what they are, and opening them. Importing this imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from moescope.adapters.architectures import ARCHITECTURES, Architecture
from moescope.adapters.card import Card
from moescope.adapters.inspection import inspect_checkpoint

if TYPE_CHECKING:
    import torch

    from moescope.adapters.model import OpenModel

__all__ = ["ARCHITECTURES", "Architecture", "Card", "inspect_checkpoint", "open_checkpoint"]


def open_checkpoint(
    path: str | Path,
    *,
    dtype: Literal["stored", "float32", "bfloat16"] = "stored",
    device: str | torch.device = "cpu",
) -> OpenModel:
    """Open the checkpoint at `path` (as for `inspect_checkpoint`), ours or foreign, ready to be traced.

    Every weight is read once and refused if it is not finite. `stored` runs the model in the dtype of its weights, as
    transformers does. Nothing is fetched from anywhere and no code of the checkpoint runs. Raises `InputError`.
    """
    import torch

    from moescope.adapters.inspection import locate, read_config

    folder = locate(path)
    wanted = {"stored": None, "float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
    if "moescope_checkpoint" in read_config(folder):
        from moescope.adapters.ours import open_ours

        return open_ours(folder, wanted, device)
    from moescope.adapters.loading import open_foreign

    return open_foreign(folder, wanted, device)
