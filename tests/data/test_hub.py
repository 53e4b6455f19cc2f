"""Data sets by name: columns become text and labels, only the first rows are fetched, and failures are one sentence."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from moescope.config import parse
from moescope.data.base import Document
from moescope.data.hub import HubCorpus
from moescope.data.load import load_tokens
from moescope.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

pytest.importorskip("datasets")

ROWS = [
    {"text": f"Row number {i} of a made up set.", "label": i % 3, "kind": "ab"[i % 2], "good": i < 40, "title": f"t{i}"}
    for i in range(60)
]


class Fake:
    """What `load_dataset(streaming=True)` returns, counting the rows that were fetched."""

    def __init__(self, rows: list[dict[str, Any]], features: Any = None, fail_at: int | None = None) -> None:
        self.rows, self.features, self.fail_at, self.fetched = rows, features, fail_at, 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for index, row in enumerate(self.rows):
            if index == self.fail_at:
                raise ConnectionError("the line went dead\nand more")
            self.fetched += 1
            yield row


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    import datasets

    features = datasets.Features({"label": datasets.ClassLabel(names=["zero", "one", "two"])})
    made = Fake(ROWS, features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: made)
    return made


def read(**config: Any) -> list[Document]:
    return list(HubCorpus(parse(HubCorpus.Config, {"name": "some/set", **config})).documents())


def test_class_names_and_strings_with_few_values_become_labels(fake: Fake) -> None:
    documents = read()
    assert [document.text for document in documents] == [row["text"] for row in ROWS]
    assert dict(documents[4].labels) == {"label": "one", "kind": "a", "good": "true"}
    assert documents[4].id == "some/set:4"


def test_columns_can_be_chosen_and_unknown_ones_are_refused(fake: Fake) -> None:
    document = read(text="title", labels=["kind"])[1]
    assert (document.text, dict(document.labels)) == ("t1", {"kind": "b"})
    for config in ({"text": "body"}, {"labels": ["body"]}):
        with pytest.raises(InputError, match="hub:some/set: no column 'body'; there are text, label, kind"):
            read(**config)


def test_no_more_is_fetched_than_asked_for(fake: Fake) -> None:
    assert len(read(max_documents=10)) == 10 and fake.fetched == 10
    few = read(max_total_characters=100)
    assert sum(len(d.text) for d in few[:-1]) < 100 <= sum(len(d.text) for d in few)


def test_a_connection_that_breaks_is_told_in_one_sentence(fake: Fake) -> None:
    fake.fail_at = 30
    with pytest.raises(InputError, match=r"^hub:some/set: it cannot be opened \(the line went dead\)\.$"):
        read()


def test_sets_without_rows_or_text_are_refused(fake: Fake) -> None:
    fake.rows = []
    with pytest.raises(InputError, match="no rows"):
        read()
    fake.rows = [{"a": 1}, {"a": 2}]
    with pytest.raises(InputError, match="no column holds text"):
        read()


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "datasets" else real(name))
    with pytest.raises(InputError, match=r"pip install 'moescope\[hub\]'"):
        read()


def test_a_folder_goes_through_the_real_library(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    rows = [{**row, "label": "xyz"[row["label"]]} for row in ROWS]
    (tmp_path / "set" / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tokens = load_tokens(f"hub:{tmp_path / 'set'}", tokenizer, 300)
    assert tokens.num_tokens == 300
    assert tokens.labels["label"].names == ("x", "y", "z") and tokens.source["corpus"] == "hub"


def test_a_name_that_does_not_exist_is_refused_offline() -> None:
    with pytest.raises(InputError, match="hub:nobody/nothing: it cannot be opened"):
        read(name="nobody/nothing")


def test_what_the_libraries_log_of_a_failure_is_not_repeated(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import datasets

    def fail(*_: object, **__: object) -> None:
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s")
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(InputError, match="no network"):
        read()
    assert not caplog.records
