"""The tokenizer is the same every time, holds every byte, and a hostile tokenizer.json is refused in one sentence."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from moescope.data.base import Document
from moescope.data.tokenizer import EOS, PAD, from_json, to_json, train_tokenizer
from moescope.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TRAIN = """
import hashlib
from moescope.data.base import Document
from moescope.data.tokenizer import to_json, train_tokenizer
words = ["alpha", "beta", "gamma", "delta", "the", "of", "class", "return"]
text = " ".join(words[(i * i + 3 * i) % 8] + str(i % 7) for i in range(3000))
print(hashlib.sha256(to_json(train_tokenizer([Document("d", text)], 600)).encode()).hexdigest())
"""


def test_training_again_in_other_processes_gives_the_same_tokenizer() -> None:
    command = [sys.executable, "-c", TRAIN]
    found = {subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)}
    assert len(found) == 1 and len(found.pop()) == len(hashlib.sha256().hexdigest()) + 1


def test_it_has_the_special_tokens_every_byte_and_no_more_than_asked(tokenizer: Tokenizer) -> None:
    assert (tokenizer.token_to_id(PAD), tokenizer.token_to_id(EOS)) == (0, 1)
    assert 300 < tokenizer.get_vocab_size() <= 400
    assert (
        train_tokenizer([Document("d", "the whole of the class is one whole thing, " * 9)], 270).get_vocab_size() == 270
    )
    assert sum(len(token) == 1 for token in tokenizer.get_vocab()) == 256
    with pytest.raises(InputError, match="at least 258"):
        train_tokenizer([Document("d", "text")], 257)


def test_a_tokenizer_without_text_is_the_bytes() -> None:
    assert train_tokenizer([], 1000).get_vocab_size() == 258


def test_json_there_and_back_is_the_same_tokenizer(tokenizer: Tokenizer) -> None:
    again = from_json(to_json(tokenizer).encode(), ours=True)
    assert to_json(again) == to_json(tokenizer)
    text = "class Reader <eos> 的"
    assert again.encode(text).ids == tokenizer.encode(text).ids
    assert 1 in from_json(to_json(tokenizer)).encode(text).ids


def changed(tokenizer: Tokenizer, **parts: Any) -> str:
    plain = json.loads(to_json(tokenizer))
    plain["model"].update(parts.pop("model", {}))
    return json.dumps({**plain, **parts})


def test_truncation_and_padding_are_switched_off(tokenizer: Tokenizer) -> None:
    other = from_json(to_json(tokenizer))
    other.enable_truncation(4)
    other.enable_padding(length=64)
    assert len(from_json(other.to_str()).encode("many words in a line of text, more than four").ids) not in (4, 64)


def test_hostile_files_are_refused_in_one_sentence(tokenizer: Tokenizer) -> None:
    vocab = json.loads(to_json(tokenizer))["model"]["vocab"]
    broken_pattern = {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}
    hostile = {
        "is not JSON": "{",
        "not JSON": "[" * 100_000,
        "no `model`": "{}",
        "has no `model`": "[1]",
        "the model type 'Pickle'": changed(tokenizer, model={"type": "Pickle"}),
        "no vocabulary": changed(tokenizer, model={"vocab": {}}),
        "the vocabulary's ids": changed(tokenizer, model={"vocab": {**vocab, "a": -5}}),
        "ids are not distinct": changed(tokenizer, model={"vocab": dict.fromkeys(vocab, 7)}),
        "cannot|not a tokenizer": changed(tokenizer, model={"merges": [["no", "such"]]}),
        "not a tokenizer that": changed(tokenizer, pre_tokenizer=broken_pattern),
        "tokenizer that can be used": changed(tokenizer, normalizer={"type": "Exec", "command": "true"}),
    }
    for why, text in hostile.items():
        with pytest.raises(InputError, match=why) as caught:
            from_json(text, "t.json")
        assert str(caught.value).startswith("t.json") and "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_file_that_is_too_large_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moescope.data.tokenizer._MOST_BYTES", 100)
    with pytest.raises(InputError, match="101 bytes"):
        from_json("x" * 101)
