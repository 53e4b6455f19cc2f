"""`moescope.watch`: a run of somebody else's training loop, written down like one of ours."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

import torch
from torch import Tensor, nn

from moescope import ranks
from moescope.config import dump
from moescope.errors import InputError
from moescope.model import Transformer
from moescope.trace.recorder import record_trace
from moescope.watching.config import WatchConfig
from moescope.watching.counting import Tally
from moescope.watching.ended import this_place
from moescope.watching.gradients import Gradients
from moescope.watching.log import Log
from moescope.watching.models import Subject, subject_of
from moescope.watching.passes import Passes
from moescope.watching.probe import Probe, fast_tokenizer, probe_tokens


def watch(
    model: nn.Module,
    *,
    run: str,
    home: str | Path | None = None,
    probe: Probe | None = None,
    tokenizer: Any = None,
    drift: bool | Literal["mass"] = True,
    **settings: Any,
) -> Watcher:
    """Watch `model` while you train it: `with moescope.watch(model, run="my run") as watcher:` around the loop, and
    `watcher.step()` in it, once after every `optimizer.step()`.

    model:     a transformers model of a family in the table of architectures, or one of ours, also within
               DistributedDataParallel; then every rank calls this alike, and the first one writes.
    run:       what the run is called on the page.
    home:      the home folder; None: the one that `moescope serve` uses.
    probe:     what snapshots are traces of: a data specification ("installed", a file, a folder), texts, or a
               TokenSet. None: no snapshots.
    tokenizer: the model's, where the probe is text.
    drift:     whether the growth detector's signals are watched (nothing is ever grown).
    settings:  see `WatchConfig`.

    The model, its gradients and the random generators are left as they were. Raises `InputError`, in one sentence,
    for what cannot be watched; once training goes on, faults of writing are warnings.
    """
    config = WatchConfig(drift="mass" if drift is True else drift, **settings)
    return Watcher(model, run, config, home=home, probe=probe, tokenizer=tokenizer)


_LONGEST_NAME: Final = 200
"""Characters of a run's name, as over HTTP."""


class Watcher:
    """One run that is watched, from entering its context to leaving it. Made by `watch`.

    id: of the run, in the store and on the page; None before it began, and on all ranks but the first.
    """

    def __init__(
        self,
        model: nn.Module,
        run: str,
        config: WatchConfig,
        *,
        home: str | Path | None = None,
        probe: Probe | None = None,
        tokenizer: Any = None,
    ) -> None:
        if not isinstance(run, str) or _writable(run) != run:
            raise InputError(f"run = {ascii(run)[:200]}: what the run is called is a text.")
        if len(run) > _LONGEST_NAME:
            raise InputError(
                f"run = {ascii(run)[:80]}…: a run's name has at most {_LONGEST_NAME} characters, not {len(run)}."
            )
        self.config, self._name, self._home = config, run, home
        self._subject: Subject = subject_of(model, run, fast_tokenizer(tokenizer))
        opened = self._subject.opened
        self._probe = probe_tokens(probe, config.probe_tokens, opened) if config.snapshot_every else None
        self._tally = Tally({layer: len(self._alive(layer)) for layer in self._subject.routers}, self._alive)
        self._passes = Passes(self._subject, self._tally)
        weights, drift = self._subject.weights, bool(config.drift)
        self._gradients = Gradients(weights, self._alive, self._optimizer_steps, drift=drift)
        self._log: Log | None = None
        self._open = False
        self._began = 0.0
        self._step = 0
        self._last: dict[str, float | None] = {"loss": None, "eval_loss": None}
        self._traced = -1
        self._warned: set[str] = set()
        self.summed_loss = False
        """Whether losses of passes that were told `num_items_in_batch` sum to the mean over all ranks, as in
        transformers.Trainer with `average_tokens_across_devices`."""

    @property
    def id(self) -> str | None:
        return None if self._log is None else self._log.id

    # The run

    def __enter__(self) -> Self:
        return self.start()

    def start(self, step: int = 0, notes: Mapping[str, Any] | None = None) -> Self:
        """What entering the context does. step: optimizer steps done before. notes: more of the configuration."""
        if self._open:
            raise InputError("This run has begun; every run needs a watch of its own.")
        self._open, self._began, self._step = True, time.perf_counter(), step
        if ranks.rank() == 0:
            config = self._configuration(notes or {})
            self._log = Log(self._home, self._name, config, self.config.steps)
            self._log.append("run_started", step, self._started(config))
        self._snapshot()
        self._passes.attach()
        self._gradients.attach()
        self._next()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(error)

    def close(self, error: BaseException | None = None) -> None:
        """What leaving the context does; `error` is what ended the loop."""
        if not self._open:
            return
        self._open = False
        self._passes.detach()
        self._gradients.detach()
        if error is None:
            self._drift()
            self._snapshot()
        if self._log is not None:
            self._log.close(*self._ending(error))

    def _ending(self, error: BaseException | None) -> tuple[str, int, dict[str, Any]]:
        if error is None:
            return "run_finished", self._step, {**self._last, "seconds": self._seconds()}
        if isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemExit) and error.code in (None, 0)):
            return "run_stopped", self._step, {"path": None}
        text = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        return "run_failed", self._step, {"error": _writable(text.strip()[:1000])}

    # In the loop

    def step(
        self, loss: Tensor | float | None = None, *, lr: float | None = None, grad_norm: Tensor | float | None = None
    ) -> None:
        """Call once per optimizer step, after `optimizer.step()`, on every rank; `zero_grad` may come before or after.

        loss:      None: what the model returned as `.loss` in this step, without its balance loss, the mean over its
                   forward passes. lr: None: read from the optimizer. grad_norm: where you have it.
        """
        if not self._open:
            raise InputError("step() was called outside of the `with` block of this watch.")
        self._step += 1
        step, config = self._step, self.config
        self._warn_if_blind()
        self._gradients.keep(step)
        if config.due(step, config.log_every):
            self._train(loss, lr, grad_norm)
        if self._passes.counting:
            payload = self._tally.payload(self._subject.opened.device)
            if payload["layers"]:
                self._tell("load", payload)
        if step == 1 or step % config.drift_every == 0:
            self._drift()
        if config.snapshot_every and (step % config.snapshot_every == 0 or step == config.steps):
            self._snapshot()
        self._next()

    def eval(self, loss: Tensor | float, *, tokens: int | None = None, accuracy: float | None = None) -> None:
        """Say what an evaluation of your own gave: the loss on held-out data, in nats per token."""
        if not self._open:
            raise InputError("eval() was called outside of the `with` block of this watch.")
        self._last["eval_loss"] = _number(loss)
        payload = {"loss": _number(loss), "tokens": tokens}
        self._tell("eval", payload if accuracy is None else payload | {"accuracy": accuracy})

    def _next(self) -> None:
        self._passes.clear()
        self._passes.counting = self.config.due(self._step + 1, self.config.load_every)

    def _train(self, loss: Tensor | float | None, lr: float | None, grad_norm: Tensor | float | None) -> None:
        """The `train` event: loss and tokens over all ranks. Waits for the device."""
        returned = self._passes.losses()
        balance = None if returned is None else returned[1]
        if loss is None and returned is not None:
            loss = returned[0]
        objectives = {} if balance is None else {"load_balance": float(balance)}
        local = [0.0 if loss is None else _number(loss), *objectives.values(), float(self._passes.tokens)]
        world = ranks.world()
        if world > 1:
            *values, tokens = ranks.summed(torch.tensor(local, dtype=torch.float64, device=self._device)).tolist()
            shared = 1 if self.summed_loss and self._passes.shares else world
            local = [*(value / shared for value in values), tokens]
        payload = {
            "objectives": dict(zip(objectives, local[1:], strict=False)),
            "lr": self._gradients.lr if lr is None else lr,
            "tokens": int(local[-1]),
            "seconds": self._seconds(),
        }
        if grad_norm is not None:
            payload["grad_norm"] = _number(grad_norm)
        if loss is not None:
            self._last["loss"] = payload["loss"] = local[0]
        self._tell("train", payload)

    def _drift(self) -> None:
        for step, payload in self._gradients.payloads(self.config.drift_every):
            self._tell("drift", payload, step)

    def _snapshot(self) -> None:
        """Trace the probe through the model as it is now; the first rank does while the others wait."""
        if self._probe is None or self._log is None or self._traced == self._step:
            return
        self._traced = self._step
        module = self._subject.opened.module
        if isinstance(module, Transformer):
            self._subject = subject_of(module, self._name, self._subject.opened.tokenizer)  # slots may have died
        try:
            with torch.autocast(self._device.type, enabled=False), ranks.alone():
                trace = record_trace(self._subject.opened, self._probe)
        except InputError as error:
            self._probe = None
            warnings.warn(f"moescope takes no more snapshots of {self._name!r}: {error}", stacklevel=4)
            return
        self._log.snapshot(self._step, trace, self._probe)

    def _optimizer_steps(self) -> None:
        """Told just before an optimizer changes the experts' weights."""
        if self._step and not self._passes.seen:
            self._warn("step() is called before optimizer.step(), so snapshots lag by one update; call it after")

    def _warn_if_blind(self) -> None:
        if self._step == 1 and not self._passes.seen:
            self._warn("no forward pass in training mode was seen before the first step(); does a copy of it train?")
        if self._step == 3 and self.config.drift and not self._gradients.seen:
            self._warn("no torch optimizer was seen to change the experts' weights, so drift is not told")

    def _warn(self, why: str) -> None:
        """Say each fault of use once."""
        if why not in self._warned:
            self._warned.add(why)
            warnings.warn(f"moescope watches {self._name!r}: {why}.", stacklevel=4)

    # What is said

    @property
    def _device(self) -> torch.device:
        return self._subject.opened.device

    def _alive(self, layer: int) -> Tensor:
        """bool [E] on the CPU: slots of a block that hold an expert."""
        module = self._subject.opened.module
        if isinstance(module, Transformer):
            return module.moe[layer].alive_E.cpu()
        num_experts = next(meta.num_experts for meta in self._subject.opened.layers if meta.layer == layer)
        return torch.ones(num_experts, dtype=torch.bool)

    def _seconds(self) -> float:
        return time.perf_counter() - self._began

    def _tell(self, kind: str, payload: Mapping[str, Any], step: int | None = None) -> None:
        if self._log is not None:
            self._log.append(kind, self._step if step is None else step, payload)

    def _configuration(self, notes: Mapping[str, Any]) -> dict[str, Any]:
        card = self._subject.opened.card
        model = {
            "family": card.family,
            "head": self._subject.head,
            "router": card.layers[0].router,
            "num_experts": card.layers[0].num_experts,
            "k": card.layers[0].k,
            "d_model": card.d_model,
            "num_layers": card.num_layers,
            "vocab_size": card.vocab_size,
        }
        return {"watch": dump(self.config), "model": model, "process": this_place(), **notes}

    def _started(self, config: Mapping[str, Any]) -> dict[str, Any]:
        opened = self._subject.opened
        return {
            "config": config,
            "params": opened.card.params,
            "active_params": self._subject.active_params,
            "layers": [asdict(layer) for layer in opened.layers],
            "data": {"kind": opened.kind, "probe_tokens": None if self._probe is None else self._probe.num_tokens},
            "device": str(self._device),
            "precision": str(next(opened.module.parameters()).dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "processes": ranks.world(),
        }


def _number(value: Tensor | float) -> float:
    try:
        return float(value.detach() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        shown = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else ascii(value)[:200]
        raise InputError(f"A loss, or the gradient's norm, is one number, and this is {shown}.") from None


def _writable(text: str) -> str:
    """`text` as UTF-8 can hold it: half of a surrogate pair, as in an undecodable file name, is a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")
