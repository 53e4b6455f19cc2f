"""Makes the bundled samples again: `python sample_checkpoints/make.py [--only NAME] [--steps N] [--threads N]`.

`runs/NAME` are finished runs: events and snapshots without weights, for the Run page. The others are checkpoints.

Each sample is a folder with a small trained checkpoint, a card, and a ready trace, so that the first page needs no
computing. The traces of the language models are of the probe text beside this file, which was written for moescope and
is in no training data. Under one version of torch, on one kind of processor and with one number of threads, the weights
follow from the seed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import chdir
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from moescope.adapters import open_checkpoint
from moescope.data.base import TokenSet
from moescope.data.load import load_tokens
from moescope.data.tokenizer import EOS, PAD
from moescope.files import usual_mode
from moescope.metrics import measure
from moescope.model import IGNORED, Batch, load_checkpoint, num_params, save_checkpoint
from moescope.store.sample_runs import make_sample_run
from moescope.trace.io import write_trace
from moescope.trace.recorder import record_trace
from moescope.trace.schema import Trace
from moescope.train import RunConfig, load_run_config
from moescope.train.allocator import keep_freed_memory
from moescope.train.beginning import held_batches, training_batches
from moescope.train.evaluate import evaluate
from moescope.train.loop import train
from moescope.train.prepare import Prepared, prepare
from moescope.train.run import Run
from moescope.train.schedule import learning_rate

HERE = Path(__file__).parent
LIMIT = 6_000_000
"""Bytes that one sample may take, its trace included."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    names = (*SAMPLES, *RUNS)
    parser.add_argument("--only", choices=sorted(names), action="append", help="make only this one (may be repeated)")
    parser.add_argument("--steps", type=int, help="train for so many steps, to try something out")
    parser.add_argument("--threads", type=int, default=2, help="sums, and so the weights, depend on it")
    parser.add_argument("--out", type=Path, default=HERE)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    for name in arguments.only or names:
        began = time.perf_counter()
        place = arguments.out / name
        if name in RUNS:
            place = make_run(name, arguments.out / "runs", arguments.steps)
        else:
            make(name, arguments.out, arguments.steps)
        size = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
        print(f"{name}: {size / 1e6:.2f} MB, {time.perf_counter() - began:.0f} s", flush=True)
        if size > LIMIT:
            raise SystemExit(f"{name} is larger than {LIMIT / 1e6:.0f} MB")


def make(name: str, out: Path, steps: int | None) -> None:
    """Make one sample in a folder beside its place, and move it there when it is complete."""
    with tempfile.TemporaryDirectory(dir=out, prefix=f".{name}.") as work:
        folder = Path(work) / name
        made, data = SAMPLES[name](folder, steps)
        probe = data.held_out if data.tokenizer is None else _probe_text(data)
        trace = record_trace(open_checkpoint(folder), probe, logits=True, sample=800, seed=0)
        failed = [check for check in trace.meta.self_check if not check["passed"]]
        if failed:
            raise SystemExit(f"{name}: the self-check failed: {failed}")
        write_trace(trace, folder / "trace.safetensors")
        for file in folder.glob("*.safetensors"):
            usual_mode(file)
        made |= _preference(trace, "class" if data.tokenizer is None else "domain")
        made |= {
            "command": f"python sample_checkpoints/make.py --only {name}",
            "date": datetime.now(UTC).date().isoformat(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "training_tokens": data.train.num_tokens,
            "fingerprint": data.fingerprint,
        }
        _write_card(folder / "card.json", name, made)
        shutil.rmtree(out / name, ignore_errors=True)
        folder.rename(out / name)


def make_run(name: str, out: Path, steps: int | None) -> Path:
    """Train a preset and keep of it what the Run page draws; its probe is the text beside this file."""
    changes: dict[str, Any] = {"threads": torch.get_num_threads(), "device": "cpu", "checkpoint_every": 0}
    changes["probe"] = {"spec": f"{HERE.name}/probe", "tokens": 3000, "sample": 500}
    if steps is not None:
        changes |= {"optim.steps": steps, "optim.warmup": min(steps // 10, 20)}
    config = load_run_config(name, changes)
    title, description = CARDS[name]
    with tempfile.TemporaryDirectory(dir=HERE, prefix=f".{name}.") as work, chdir(HERE.parent):
        run, made = Path(work) / name, Path(work) / "made"
        events = list(train(config, run))
        grown = [event for event in events if event.kind == "growth_ended"][-1].payload["layers"]
        told = {"steps": config.optim.steps, "seed": config.seed, "experts": grown[-1]["alive"]}
        words = description.format(**told)
        today = datetime.now(UTC).isoformat(timespec="seconds")
        make_sample_run(run, events, made, title=title, description=words, preset=name, created=today, snapshots=14)
        out.mkdir(exist_ok=True)
        shutil.rmtree(out / name, ignore_errors=True)
        shutil.move(made, out / name)
    return out / name


def _write_card(path: Path, name: str, made: dict[str, Any]) -> None:
    title, description = CARDS[name]
    card = {"title": title, "description": description.format(**made), "made": made}
    path.write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _probe_text(data: Prepared) -> TokenSet:
    """The probe text as tokens; its source does not say where on this machine it lay."""
    tokens = load_tokens(str(HERE / "probe"), data.tokenizer, 20_000)
    return replace(tokens, source={**tokens.source, "corpus": "probe", "config": {"path": "sample_checkpoints/probe"}})


def _preference(trace: Trace, label: str) -> dict[str, Any]:
    """The expert that most prefers one value of `label`, in the layer that tells most about it; with both shares."""
    found = [item for item in measure(trace, ["mutual_information"]) if item.label == label]
    best = max(found, key=lambda item: item.value or 0.0)
    labels, layer = trace.labels[label], trace.layers[best.layer]
    at = np.nonzero(layer.wanted_TK & (labels.codes >= 0)[:, None])
    count_EY = np.zeros((layer.meta.num_experts, len(labels.names)))
    np.add.at(count_EY, (layer.expert_TK[at], labels.codes[at[0]]), 1)
    load_E1, base_Y = count_EY.sum(axis=1, keepdims=True), count_EY.sum(axis=0) / count_EY.sum()
    share_EY = count_EY / np.maximum(load_E1, 1)
    lift_EY = np.where(load_E1 > 0.02 * load_E1.sum(), share_EY / base_Y, 0)
    expert, value = np.unravel_index(lift_EY.argmax(), lift_EY.shape)
    return {
        "layer": best.layer,
        "expert": int(expert),
        "value": labels.names[value],
        "share": f"{share_EY[expert, value]:.0%}",
        "base": f"{base_Y[value]:.0%}",
        "information": round(best.value or 0.0, 3),
        "information_null": round(best.null or 0.0, 3),
    }


def ours(preset: str) -> Callable[[Path, int | None], tuple[dict[str, Any], Prepared]]:
    """How to make a sample of a preset: its last weights as bfloat16, routers as float32."""

    def build(folder: Path, steps: int | None) -> tuple[dict[str, Any], Prepared]:
        config = _config(preset, steps)
        run = Run(config, folder.parent / "run", None, lambda stage: None)
        for event in run.events(lambda: False):
            if event.kind == "eval":
                print(f"  {preset}, step {event.step}: held-out loss {event.payload['loss']:.4f}", flush=True)
        card = {"title": CARDS[folder.name][0], "preset": preset}
        save_checkpoint(folder, run.model, run.data.tokenizer_json, card, dtype=torch.bfloat16)
        stored, _, _ = load_checkpoint(folder)
        told = evaluate(stored, run.observer.held, config.optim.steps)
        return _made(config, told, num_params(stored)), run.data

    return build


def olmoe(folder: Path, steps: int | None) -> tuple[dict[str, Any], Prepared]:
    """transformers' OLMoE on the data, tokenizer and schedule of `lm-installed`, saved as transformers saves it."""
    from transformers import OlmoeConfig, OlmoeForCausalLM, PreTrainedTokenizerFast
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    config = _config("lm-installed", steps)
    data = prepare(config, None, lambda stage: None)
    assert data.tokenizer is not None
    torch.manual_seed(config.seed)
    model = OlmoeForCausalLM(
        OlmoeConfig(
            vocab_size=data.tokenizer.get_vocab_size(),
            hidden_size=128,
            intermediate_size=32,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_experts=16,
            num_experts_per_tok=4,
            max_position_embeddings=config.model.max_seq,
            initializer_range=0.05,
            tie_word_embeddings=True,
            pad_token_id=0,
            eos_token_id=1,
        )
    )
    batches, held = training_batches(config, data), held_batches(config, data.model, data.held_out)
    rate = config.optim
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=rate.lr, betas=(rate.beta1, rate.beta2), weight_decay=rate.weight_decay, fused=True
    )
    for step in range(rate.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, peak=rate.lr, warmup=rate.warmup, steps=rate.steps, final=rate.final_lr)
        main, balance = _olmoe_loss(model, batches(step))
        (main + config.objective("load_balance")[0] * balance).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), rate.clip)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 100 == 0 or step + 1 == rate.steps:
            print(f"  olmoe, step {step + 1}: loss {main.item():.4f}, balance {balance.item() / 4:.3f}", flush=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=data.tokenizer, pad_token=PAD, eos_token=EOS)
    tokenizer.save_pretrained(folder)
    stored = OlmoeForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        losses = [_olmoe_loss(stored, batch)[0].item() for batch in held()]
    return _made(config, {"loss": sum(losses) / len(losses)}, num_params(stored)), data


def _olmoe_loss(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Next-token loss, and the balance loss E Σ f P (2101.03961, Eq. 4-6) summed over layers, each for itself."""
    output = model(input_ids=batch.inputs, output_router_logits=True)
    assert batch.target is not None
    main = F.cross_entropy(output.logits.flatten(0, 1), batch.target.flatten(), ignore_index=IGNORED)
    balance = main.new_zeros(())
    for logits_TE in output.router_logits:
        p_TE = logits_TE.float().softmax(dim=-1)
        chosen_TK = p_TE.topk(model.config.num_experts_per_tok, dim=-1).indices
        f_E = torch.bincount(chosen_TK.flatten(), minlength=p_TE.shape[1]) / chosen_TK.numel()
        balance = balance + p_TE.shape[1] * (f_E * p_TE.mean(dim=0)).sum()
    return main, balance


def _config(preset: str, steps: int | None) -> RunConfig:
    changes: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "snapshot_every": 0,
        "checkpoint_every": 0,
        "device": "cpu",
    }
    if steps is not None:
        changes |= {"optim.steps": steps, "optim.warmup": min(steps // 10, 20)}
    return load_run_config(preset, changes)


def _made(config: RunConfig, told: dict[str, Any], params: int) -> dict[str, Any]:
    made = {"seed": config.seed, "steps": config.optim.steps, "params": params, "loss": round(told["loss"], 3)}
    return made | ({"accuracy": round(told["accuracy"], 3)} if "accuracy" in told else {})


CARDS = {
    "lm-installed": (
        "Small language model on installed text",
        "Four blocks of 8 experts, 2 per token, trained for {steps} steps on source code, C++ headers, English "
        "documentation, licences and data files of one machine (seed {seed}); held-out loss {loss} nats per token. "
        "The trace is of a text on one subject, rain gauges, told in the same five domains. Some experts prefer a "
        "domain: in block {layer}, {share} of what expert {expert} takes is {value}, which is {base} of the text.",
    ),
    "olmoe-installed": (
        "OLMoE on installed text",
        "transformers' OLMoE with 4 blocks of 16 experts, 4 per token, gates not renormalised, trained for {steps} "
        "steps on the data and tokenizer of the small language model (seed {seed}) and saved in Hugging Face format; "
        "held-out loss {loss} nats per token. The trace is of the same text about rain gauges: in block {layer}, "
        "{share} of what expert {expert} takes is {value}, which is {base} of the text.",
    ),
    "vit-digits": (
        "Vision transformer on digits",
        "Three blocks of 8 experts, 2 per patch, on handwritten digits as 16 patches of 2 x 2 pixels, trained for "
        "{steps} steps (seed {seed}); held-out accuracy {accuracy}. The trace is of the held-out digits. The "
        "first block divides patches by place and ink, the last one by digit: in block {layer}, {share} of what expert "
        "{expert} takes belongs to a {value}, which is {base} of all patches.",
    ),
    "grow-installed": (
        "A model that grew while domains arrived",
        "Two blocks, the second with experts, trained for {steps} steps (seed {seed}) while source code, C++ headers, "
        "documentation, licences and data files of one machine arrived one after another: 2 experts at the start, "
        "{experts} at the end. Its snapshots are of a text on one subject, rain gauges, told in the same domains.",
    ),
}
RUNS = ("grow-installed",)
SAMPLES = {"lm-installed": ours("lm-installed"), "vit-digits": ours("vit-digits"), "olmoe-installed": olmoe}

if __name__ == "__main__":
    main()
