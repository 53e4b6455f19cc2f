"""`WatchCallback`: the same for `transformers.Trainer`."""

from __future__ import annotations

import atexit
import sys
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback

from moescope.errors import InputError
from moescope.watching.watcher import Watcher, watch


class WatchCallback(TrainerCallback):  # type: ignore[misc]
    """`Trainer(..., callbacks=[WatchCallback(run="my run")])`: what `moescope.watch` takes, the model left out.

    run:       None: the Trainer's `run_name`. tokenizer: None: its `processing_class`.

    Steps, loss, learning rate and evaluations come from the Trainer. Gradients are seen as its optimizer gets them,
    after clipping. It tells nobody of an exception: a run that one ended is closed when the process ends, when the
    callback is used again, or by `close`.
    """

    def __init__(self, run: str | None = None, *, tokenizer: Any = None, **options: Any) -> None:
        self._run, self._tokenizer, self._options = run, tokenizer, options
        self.watcher: Watcher | None = None
        """The run under way."""

    def on_init_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if args.torch_compile:
            raise InputError("The Trainer compiles the model (torch_compile); watch and train it uncompiled.")
        if args.n_gpu > 1:
            raise InputError("The Trainer uses DataParallel here; start it with torchrun, one process per GPU.")

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.close(InputError("training began anew before it had ended."))
        self.on_init_end(args, state, control)  # it may have been added later
        tokenizer = self._tokenizer or _text_tokenizer(given.get("processing_class"))
        options = {"steps": state.max_steps, **self._options}
        name = self._run or args.run_name or "transformers.Trainer"
        watcher = watch(given["model"], run=str(name), tokenizer=tokenizer, **options)
        watcher.summed_loss = bool(getattr(args, "average_tokens_across_devices", False))
        watcher.start(state.global_step, {"trainer": _told(args)})
        self.watcher = watcher
        atexit.register(self._left)

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if self.watcher is not None:
            self.watcher.step()

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **given: Any) -> None:
        loss = (metrics or {}).get("eval_loss")
        if self.watcher is not None and loss is not None:
            self.watcher.eval(loss, accuracy=metrics.get("eval_accuracy"))

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.close()

    def close(self, error: BaseException | None = None) -> None:
        """End the run under way, if there is one; `error` is what ended the training."""
        if self.watcher is not None:
            self.watcher.close(error)
            self.watcher = None
            atexit.unregister(self._left)

    def _left(self) -> None:
        self.close(getattr(sys, "last_value", None) or InputError("the process ended before the training had."))


def _text_tokenizer(processing: Any) -> Any:
    """The Trainer's tokenizer, where it has one that can be used."""
    return processing if hasattr(processing, "backend_tokenizer") else None


def _told(args: Any) -> Mapping[str, Any]:
    names = (
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "learning_rate",
        "max_grad_norm",
        "weight_decay",
        "lr_scheduler_type",
        "optim",
        "seed",
    )
    return {
        name: value if isinstance(value := getattr(args, name, None), int | float) else str(value) for name in names
    }
