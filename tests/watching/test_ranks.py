"""Two processes in DistributedDataParallel: counts and tokens are summed, losses averaged, and one of them writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from watch_cases import Read, batches, build


def test_two_processes_tell_what_both_did(home: Path, read: Callable[[], Read], tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        str(Path(__file__).parent / "two_ranks.py"), str(home), str(tmp_path / "out.json"),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert read().run.id == json.loads((tmp_path / "out.json").read_text())["id"]
    assert (read().run.status, read().run.step) == ("finished", 2)
    model, data = build("mixtral", attention_dropout=0.0), batches(2, padded=True)
    with torch.no_grad():
        halves = [model(**{name: value[part] for name, value in data[0].items()}) for part in (slice(2), slice(2, 4))]
        logits = model(**data[0], output_router_logits=True).router_logits
    first, second = read().events("train")
    assert first.payload["loss"] == pytest.approx(sum(half.loss.item() for half in halves) / 2, rel=1e-5)
    tokens = [int(batch["attention_mask"].sum()) for batch in data]
    assert [first.payload["tokens"], second.payload["tokens"]] == np.cumsum(tokens).tolist()
    mask = data[0]["attention_mask"].flatten().bool()
    for layer, item in zip(read().events("load")[0].payload["layers"], logits, strict=True):
        count_E = np.bincount(item[mask].topk(2).indices.flatten(), minlength=4)
        assert layer["load"] == pytest.approx((count_E / count_E.sum()).tolist()) and layer["tokens"] == tokens[0]
    assert [event.step for event in read().events("snapshot")] == [0, 2]
    assert read().events("run_started")[0].payload["processes"] == 2
