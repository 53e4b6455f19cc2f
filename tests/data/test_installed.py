"""Installed text: fair at every prefix, the same on every run, labelled exactly, each text in one place only."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

from moescope.config import parse
from moescope.data import packages
from moescope.data.base import Document
from moescope.data.installed import DOMAINS, InstalledCorpus
from moescope.data.windows import source_of
from moescope.errors import InputError


def some(characters: int, **config: Any) -> list[Document]:
    total = 0

    def more(document: Document) -> bool:
        nonlocal total
        total += len(document.text)
        return total <= characters

    return list(takewhile(more, InstalledCorpus(parse(InstalledCorpus.Config, config)).documents()))


@pytest.fixture(scope="module")
def first() -> list[Document]:
    return some(200_000)


def test_every_prefix_holds_a_fair_share_of_every_domain(first: list[Document]) -> None:
    held = Counter(dict.fromkeys(DOMAINS, 0))
    for document in first:
        held[document.labels["domain"]] += len(document.text)
        assert max(held.values()) - min(held.values()) <= 1500
    assert min(held.values()) > 35_000


def test_within_a_domain_every_prefix_holds_a_fair_share_of_the_packages(first: list[Document]) -> None:
    held = Counter(d.labels["package"] for d in first if d.labels["domain"] == "python")
    assert len(held) >= 20 and max(held.values()) <= 3


def test_documents_have_the_size_asked_for_and_unique_names(first: list[Document]) -> None:
    assert all(200 <= len(document.text) <= 1500 for document in first)
    assert len({document.id for document in first}) == len(first)


def test_python_alone_has_syntax_and_it_is_right(first: list[Document]) -> None:
    seen = Counter[str]()
    for document in first:
        assert ("syntax" in document.spans) == (document.labels["domain"] == "python")
        for span in document.spans.get("syntax", ()):
            text = document.text[span.start : span.end]
            seen[span.value] += 1
            if span.value == "comment":
                assert text.startswith("#") or span.start == 0
            elif span.value == "keyword":
                assert re.fullmatch("[A-Za-z]+", text)
            elif span.value == "punctuation":
                assert text in {*"()[]{},:;.", "...", "->"}
    assert min(seen[value] for value in ("keyword", "name", "string", "comment", "number", "docstring")) > 20


def test_documents_are_what_stands_in_the_files(first: list[Document]) -> None:
    files = {file.id: file.path for name in packages.installed_distributions() for file in packages.package_files(name)}
    files |= {file.id: file.path for file in (*packages.standard_library(), *packages.torch_headers())}
    checked = 0
    for document in first:
        if document.labels["domain"] in ("python", "cpp", "data", "licence"):
            text = Path(files[source_of(document.id)]).read_text(encoding="utf-8-sig")
            assert document.text in text
            checked += 1
    assert checked > 50


def test_english_is_prose(first: list[Document]) -> None:
    prose = [document.text for document in first if document.labels["domain"] == "english"]
    assert not any(">>>" in text or "```" in text for text in prose)
    letters = sum(c.isalpha() or c.isspace() for text in prose for c in text) / sum(map(len, prose))
    assert letters > 0.93


def test_the_order_depends_on_the_seed_and_not_on_the_file_system(
    first: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.walk

    def backwards(top: Any) -> Iterator[tuple[str, list[str], list[str]]]:
        for folder, folders, files in real(top):
            folders.sort(reverse=True)
            yield folder, folders, sorted(files, reverse=True)

    monkeypatch.setattr(os, "walk", backwards)
    backward = some(25_000)
    assert backward == first[: len(backward)]
    assert {d.id for d in some(25_000, seed=1)} != {d.id for d in backward}


def test_another_process_reads_the_same_and_never_imports_torch(first: list[Document]) -> None:
    code = (
        "import sys\nfrom moescope.data.load import load_documents\n"
        "print([d.id for d in load_documents('installed', 20000)], 'torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    names = [document.id for document in first][: found.stdout.count("'") // 2]
    assert found.stdout == f"{names} False\n"


def test_no_file_is_in_two_splits_or_two_domains() -> None:
    train, held_out = some(60_000, split="train"), some(60_000, split="held_out")
    files = [{source_of(d.id) for d in part if d.labels["domain"] != "licence"} for part in (train, held_out)]
    assert files[0] and files[1] and not files[0] & files[1]
    assert not {d.id for d in train} & {d.id for d in held_out}
    domains: dict[str, set[str]] = {}
    for document in (*train, *held_out):
        domains.setdefault(source_of(document.id), set()).add(document.labels["domain"])
    assert all(len(found) == 1 for found in domains.values())


def test_the_splits_are_all_of_it() -> None:
    parts = [{d.id for d in some(10**9, domains=["licence"], split=split)} for split in ("all", "train", "held_out")]
    assert parts[0] == parts[1] | parts[2] and len(parts[0]) == len(parts[1]) + len(parts[2])
    assert 0.02 < len(parts[2]) / len(parts[0]) < 0.25


def test_licences_that_repeat_others_are_left_out() -> None:
    licences = [" ".join(document.text.split()) for document in some(10**9, domains=["licence"])]
    installed = [
        " ".join(Path(file.path).read_text(encoding="utf-8", errors="replace").split())
        for name in packages.installed_distributions()
        for file in packages.package_files(name)
        if "licen" in Path(file.name).name.lower()
    ]
    assert len(licences) > 20
    for phrase in ("Permission is hereby granted, free of charge", "Grant of Copyright License"):
        assert 0 < sum(phrase in text for text in licences) < sum(phrase in text for text in installed) / 4


def test_no_package_gives_much_more_than_its_cap() -> None:
    held = Counter[str]()
    for document in some(10**9, domains=["data", "licence"], package_cap=5000):
        held[f"{document.labels['domain']} {document.labels['package']}"] += len(document.text)
    assert 5000 <= max(held.values()) < 5000 + 1500


def test_where_packages_keep_no_records_there_are_still_code_headers_and_prose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "installed_distributions", list)
    assert {document.labels["domain"] for document in some(30_000)} == {"python", "cpp", "english"}


def test_dependencies_are_found_by_following_requirements() -> None:
    found = packages.installed_distributions()
    assert {"torch", "numpy", "starlette"} <= set(found) and "moescope" not in found and found == sorted(found)
    assert packages.installed_distributions("no-such-package") == []


@pytest.mark.parametrize(
    "config",
    [{"domains": []}, {"domains": ["cpp", "cpp"]}, {"held_out": 1.0}, {"min_characters": 2000}, {"domains": ["x"]}],
)
def test_bad_options_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="InstalledConfig"):
        some(1, **config)
