"""The probe of a run that is watched: fixed tokens, from whatever the user has at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

from moescope.adapters.model import OpenModel
from moescope.adapters.tokenization import parse_tokenizer
from moescope.data.base import Document, TokenSet
from moescope.data.encode import encode
from moescope.data.load import load_tokens
from moescope.errors import InputError

Probe = TokenSet | str | Mapping[str, Any] | Sequence[str]
"""Tokens, a data specification (a corpus, a file, a folder), or texts."""


def fast_tokenizer(tokenizer: Any) -> Tokenizer | None:
    """A copy of the user's tokenizer, of `tokenizers` or of transformers, that neither cuts nor pads. `InputError`."""
    if tokenizer is None:
        return None
    inner = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not isinstance(inner, Tokenizer):
        needed = "a fast tokenizer of transformers, or one of tokenizers, is needed"
        raise InputError(f"tokenizer is a {type(tokenizer).__name__}; {needed}.")
    return parse_tokenizer(inner.to_str())


def probe_tokens(probe: Probe | None, most: int, model: OpenModel) -> TokenSet | None:
    """At most `most` tokens of the probe (a TokenSet is taken whole), which the model can read. Raises `InputError`."""
    if probe is None:
        return None
    tokens = probe if isinstance(probe, TokenSet) else _read(probe, most, model.tokenizer)
    if not tokens.num_tokens:
        raise InputError("The probe holds no token.")
    if tokens.kind != model.kind:
        raise InputError(f"The model reads {model.kind}, and the probe is {tokens.kind}.")
    if tokens.kind == "text" and not 0 <= int(tokens.inputs.min()) <= int(tokens.inputs.max()) < model.card.vocab_size:
        known = f"the model knows the token ids 0 to {model.card.vocab_size - 1:,}"
        raise InputError(f"The probe holds the token id {int(tokens.inputs.max()):,}, and {known}.")
    return tokens


def _read(probe: str | Mapping[str, Any] | Sequence[str], most: int, tokenizer: Tokenizer | None) -> TokenSet:
    if isinstance(probe, str | Mapping):
        return load_tokens(probe, tokenizer, most)
    if tokenizer is None:
        raise InputError("A probe of texts needs the model's tokenizer: give watch(..., tokenizer=...).")
    texts = list(probe)
    if not all(isinstance(text, str) for text in texts):
        raise InputError("A probe is a TokenSet, a data specification, or a list of texts.")
    documents = [Document(id=f"text {index}", text=text) for index, text in enumerate(texts)]
    return encode(documents, tokenizer, most, {"corpus": "probe"})
