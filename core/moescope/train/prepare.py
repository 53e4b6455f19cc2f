"""From a run's configuration to tokens: tokenizer, training data, held-out data, probe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

from moescope.data import load
from moescope.data.base import Corpus, TextCorpus, TokenSet
from moescope.data.corruption import corrupted
from moescope.data.tokenizer import from_json, to_json, train_tokenizer
from moescope.data.tokens import content_hash, split
from moescope.errors import InputError
from moescope.model import ModelConfig
from moescope.model.transformer import build_moe
from moescope.train.arrivals import Arrival, arrivals
from moescope.train.config import RunConfig
from moescope.train.probe import held_out_probe

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Progress = Callable[[str], None]
"""Called with the name of a stage."""

_TOKENIZER_CHARACTERS: Final = 4_000_000
_KINDS: Final = {"text": "tokens", "patches": "patches", "vectors": "vectors"}


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """All that a run reads. `model` has the sizes that follow from the data; `fingerprint` names the data's content;
    `arrivals` say which documents of `train` come when, if they do not all come at the start."""

    train: TokenSet
    held_out: TokenSet
    probe: TokenSet
    model: ModelConfig
    fingerprint: str
    tokenizer: Tokenizer | None = None
    evals: Mapping[str, TokenSet] = field(default_factory=dict)
    arrivals: tuple[Arrival, ...] = ()

    @property
    def tokenizer_json(self) -> str | None:
        """The tokenizer as the text of a tokenizer.json."""
        return None if self.tokenizer is None else to_json(self.tokenizer)


def prepare(config: RunConfig, tokenizer_json: str | None, progress: Progress) -> Prepared:
    """Read the data and hold a part of it out. `tokenizer_json` is that of a checkpoint to go on from.

    Raises `InputError` for data that is not there or that the model cannot read.
    """
    data, corpus = config.data, corpus_of(config)
    tokenizer = _tokenizer(config, corpus, tokenizer_json, progress) if isinstance(corpus, TextCorpus) else None
    progress("reading the data")
    tokens = load.load_tokens(data.spec, tokenizer, data.tokens, data.seed)
    if "floor" in tokens.source and isinstance(corpus, TextCorpus):
        tokens = load.with_floor(tokens, corpus, config.optim.seq, _scored_from(config))
    train, held_out = split(tokens, data.held_out, data.seed)
    progress("reading the probe")
    if config.probe.spec is None:
        probe = held_out_probe(held_out, config.probe.tokens, config.seed)
    else:
        probe = load.load_tokens(config.probe.spec, tokenizer, config.probe.tokens, config.seed)
    return Prepared(
        train=train,
        held_out=held_out,
        probe=probe,
        model=_sizes(config.model, tokens, tokenizer),
        fingerprint=content_hash(tokens),
        tokenizer=tokenizer,
        evals={name: corrupted(held_out, corruption, tokenizer) for name, corruption in config.evals.items()},
        arrivals=() if data.arrive is None else arrivals(data.arrive, tokens, config.optim.steps),
    )


def corpus_of(config: RunConfig) -> Corpus:
    """What a run learns from, before anything of it is read. Raises `InputError` where the model cannot read it."""
    name, corpus = load.open_corpus(config.data.spec, config.data.seed)
    if config.model.input != _KINDS[corpus.kind]:
        raise InputError(f"The data {name!r} is {corpus.kind}, and model.input is {config.model.input!r}.")
    return corpus


def _tokenizer(config: RunConfig, corpus: TextCorpus, tokenizer_json: str | None, progress: Progress) -> Tokenizer:
    """That of the checkpoint, else the one asked for, else the data's own, else one that is trained."""
    data = config.data
    if tokenizer_json is not None:
        return from_json(tokenizer_json, ours=data.tokenizer is None)
    if data.tokenizer is not None:
        path = Path(data.tokenizer)
        if not path.is_file():
            raise InputError(f"data.tokenizer = {data.tokenizer!r}: there is no such file.")
        return from_json(path.read_bytes(), path.name)
    own = corpus.tokenizer()
    if own is not None:
        return own
    progress("training the tokenizer")
    documents = load.load_documents(data.spec, min(_TOKENIZER_CHARACTERS, 4 * data.tokens), data.seed)
    return train_tokenizer(documents, data.vocab_size)


def _scored_from(config: RunConfig) -> int:
    """First position of a window whose next token counts in the loss."""
    with torch.device("meta"):
        return max(config.optim.loss_from, build_moe(config.model).router.causal_from)


def _label_values(model: ModelConfig, tokens: TokenSet) -> ModelConfig:
    """The configuration of a router that reads a label, with the label's values in this data."""
    label = model.label
    if label is None:
        return model
    if label.name not in tokens.labels:
        there = ", ".join(tokens.labels) or "none"
        raise InputError(f"Router {model.router!r} reads the label {label.name!r}; the data has {there}.")
    known = tokens.labels[label.name].names
    unknown = [value for value in label.values if value not in known]
    if unknown:
        raise InputError(
            f"The label {label.name!r} has no value {unknown[0]!r} in this data; it has {', '.join(known)}."
        )
    if label.values:
        return model
    return replace(model, router_config={**model.router_config, "values": list(tokens.labels[label.name].names)})


def _sizes(model: ModelConfig, tokens: TokenSet, tokenizer: Tokenizer | None) -> ModelConfig:
    """The model's configuration with what follows from the data."""
    model = _label_values(model, tokens)
    if tokens.kind == "text":
        assert tokenizer is not None
        _check_head(model, tokens)
        return replace(model, vocab_size=tokenizer.get_vocab_size())
    _check_head(model, tokens)
    return replace(
        model,
        d_input=int(tokens.inputs.shape[1]),
        num_classes=0 if tokens.target is None else int(tokens.target.max()) + 1,
        num_values=0 if tokens.values is None else int(tokens.values.shape[1]),
    )


def _check_head(model: ModelConfig, tokens: TokenSet) -> None:
    """Refuse a model that would predict what this data does not have."""
    there = {"class": tokens.target is not None, "values": tokens.values is not None}
    if there.get(model.head, True):
        return
    lacks = {"class": "class", "values": "values"}[model.head]
    others = [repr(name) for name, has in there.items() if has] + (["'next_token'"] if tokens.kind == "text" else [])
    heads = f"; model.head may be {' or '.join(others)}" if others else ""
    raise InputError(f"model.head = {model.head!r}: this data has no {lacks} per document{heads}.")
