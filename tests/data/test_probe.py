"""The probe text: five domains of one subject, with words that mean different things in them."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from moescope.data.installed import DOMAINS
from moescope.data.load import load_documents, load_tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PROBE = Path(__file__).resolve().parents[2] / "sample_checkpoints" / "probe"


def test_it_has_the_domains_of_installed_text_with_several_documents_each() -> None:
    documents = load_documents(str(PROBE))
    domains = [document.labels["domain"] for document in documents]
    assert set(domains) == set(DOMAINS) and all(domains.count(domain) >= 4 for domain in DOMAINS)
    assert sum(document.text.count("\n") for document in documents) >= 300


@pytest.mark.parametrize(
    ("word", "domains"), [("class", 5), ("template", 5), ("return", 5), ("bucket", 4), ("rain", 5)]
)
def test_the_same_words_stand_in_several_domains(word: str, domains: int) -> None:
    documents = load_documents(str(PROBE))
    assert len({d.labels["domain"] for d in documents if word in d.text.lower()}) >= domains


def test_its_python_and_json_are_valid_and_python_has_every_kind_of_syntax(tokenizer: Tokenizer) -> None:
    for path in PROBE.rglob("*.py"):
        ast.parse(path.read_text(encoding="utf-8"))
    for path in PROBE.rglob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))
    tokens = load_tokens(str(PROBE), tokenizer, 10**6)
    assert {"comment", "docstring", "keyword", "name", "number", "string"} <= set(tokens.labels["syntax"].names)
    assert set(tokens.labels) == {"domain", "syntax"}
