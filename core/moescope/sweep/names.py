"""Names of what is taken from a finished cell, such as `eval_loss` or `mutual_information.corrected:domain`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from moescope.errors import InputError

Source = Literal["eval", "train", "size", "layers", "trace"]

MEAN: Final = "mean"
"""The `layer` of a mean over the MoE blocks."""

ALWAYS: Final = ("active_params", "active_params_train", "router_params")
"""What the table has of every cell, asked for or not: equal active parameters have to be seen to be equal."""

PLAIN: Final[dict[str, tuple[Source, str]]] = {
    "eval_loss": ("eval", "nats"),
    "eval_accuracy": ("eval", "share"),
    "perplexity": ("eval", ""),
    "train_loss": ("train", "nats"),
    "train_loss_mean": ("train", "nats"),
    "seconds_per_step": ("train", "s"),
    "tokens": ("train", "tokens"),
    "params": ("size", "parameters"),
    "router_params": ("size", "parameters"),
    "active_params": ("size", "parameters"),
    "active_params_train": ("size", "parameters"),
    "alive_experts": ("layers", "experts"),
    "used_experts": ("layers", "experts"),
    "experts_per_token": ("layers", "experts"),
    "experts_per_token_train": ("layers", "experts"),
}
"""Metrics that are one word: where they are read, and their unit."""

_FORMS: Final = re.compile(
    r"(?P<base>eval_loss)@(?P<step>\d+)"
    r"|objectives\.(?P<objective>\w+)"
    r"|evals\.(?P<eval>[\w-]+)(?:\.(?P<part>accuracy|excess))?"
    r"|(?P<measure>\w+)(?:\.(?P<detail>\w+))?(?::(?P<label>[\w .-]+))?"
)


@dataclass(frozen=True, kw_only=True)
class MetricName:
    """A metric's name, taken apart.

    source: where it is read. name: the plain name, or the measure of `METRICS`. step: of `eval_loss@STEP`.
    eval, part: of `evals.EVAL.PART`. objective: of `objectives.OBJECTIVE`. detail, label: of `MEASURE.DETAIL:LABEL`.
    """

    text: str
    source: Source
    name: str
    step: int | None = None
    eval: str | None = None
    part: str = "loss"
    objective: str | None = None
    detail: str | None = None
    label: str | None = None

    @staticmethod
    def parse(text: str) -> MetricName:
        """Raises `InputError` for a name that means nothing."""
        if text in PLAIN:
            return MetricName(text=text, source=PLAIN[text][0], name=text)
        found = _FORMS.fullmatch(text)
        if found is None:
            raise InputError(f"{text!r} is not the name of a metric; {_there_are()}.")
        if found["step"] is not None:
            return MetricName(text=text, source="eval", name="eval_loss", step=int(found["step"]))
        if found["objective"] is not None:
            return MetricName(text=text, source="train", name="objectives", objective=found["objective"])
        if found["eval"] is not None:
            return MetricName(text=text, source="eval", name="evals", eval=found["eval"], part=found["part"] or "loss")
        return _of_trace(text, found["measure"], found["detail"], found["label"])


def _of_trace(text: str, measure: str, detail: str | None, label: str | None) -> MetricName:
    from moescope.metrics import METRICS

    if measure not in METRICS:
        raise InputError(f"{text!r} is not the name of a metric; {_there_are()}.")
    details = METRICS[measure].details
    if detail is not None and detail not in details:
        raise InputError(f"{text!r}: {measure} has no detail {detail!r}; it has {', '.join(details) or 'none'}.")
    return MetricName(text=text, source="trace", name=measure, detail=detail, label=label)


def same_metric(text: str, listed: str) -> bool:
    """Whether `listed` gives `text`: itself, or the same measure without a label, which gives every label."""
    return text == listed or text.partition(":")[0] == listed


def _there_are() -> str:
    from moescope.metrics import METRICS

    named = ", ".join(PLAIN)
    return f"there are {named}, eval_loss@STEP, evals.NAME, objectives.NAME, and of traces {', '.join(METRICS)}"
