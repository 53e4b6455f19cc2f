"""The user's files: what is read, what is a label, and one sentence with file and line for what cannot be read."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from moescope.config import parse
from moescope.data.base import Document, Span
from moescope.data.text import TextFiles
from moescope.errors import InputError


def read(path: Path, **config: Any) -> list[Document]:
    return list(TextFiles(parse(TextFiles.Config, {"path": str(path), **config})).documents())


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def refused(path: Path, match: str, **config: Any) -> None:
    with pytest.raises(InputError, match=match) as caught:
        read(path, **config)
    assert "\n" not in str(caught.value)


def test_a_plain_file_is_one_document_as_it_stands(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": "One.\r\nTwo — naïve.\n"})
    (document,) = read(tmp_path / "a.txt")
    assert (document.id, document.text, document.labels) == ("a.txt", "One.\r\nTwo — naïve.\n", {})


def test_a_folder_is_read_in_order_with_its_top_folders_as_domains(tmp_path: Path) -> None:
    write(tmp_path, {"b/y.txt": "y", "b/deep/z.md": "z", "a/x.py": "x = 1\n", "c.txt": "c", "LICENSE": "free"})
    documents = read(tmp_path)
    assert [d.id for d in documents] == ["LICENSE", "a/x.py", "b/deep/z.md", "b/y.txt", "c.txt"]
    assert [d.labels["domain"] for d in documents] == ["LICENSE", "a", "b", "b", "c"]
    assert [span.value for span in documents[1].spans["syntax"]] == ["name", "operator", "number", "newline"]


def test_hidden_binary_and_linked_files_are_left_out(tmp_path: Path) -> None:
    outside = write(tmp_path / "outside", {"secret.txt": "secret"})
    folder = write(
        tmp_path / "in",
        {"a.txt": "a", ".hidden.txt": "h", ".git/config.txt": "g", "image.png": b"\x89PNG", "__pycache__/c.txt": "c"},
    )
    (folder / "link.txt").symlink_to(outside / "secret.txt")
    (folder / "linked").symlink_to(outside, target_is_directory=True)
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    os.mkfifo(folder / "pipe.txt")
    assert [d.text for d in read(folder)] == ["a"]


def test_long_documents_are_cut_at_line_breaks(tmp_path: Path) -> None:
    text = "".join(f"line number {index}\n" for index in range(50))
    write(tmp_path, {"a.txt": text})
    documents = read(tmp_path / "a.txt", max_characters=100)
    assert "".join(d.text for d in documents) == text
    assert all(len(d.text) <= 100 and d.text.endswith("\n") for d in documents)
    assert [d.id for d in documents][:2] == ["a.txt#0", "a.txt#1"]


def test_gzip_is_read_directly_and_never_further_than_the_limit(tmp_path: Path) -> None:
    bomb = gzip.compress(b"0" * 50_000_000)
    assert len(bomb) < 60_000
    files = {"a.txt.gz": gzip.compress(b"plain"), "bomb.txt.gz": bomb, "cut.txt.gz": bomb[:-9], "no.txt.gz": b"plain"}
    write(tmp_path, dict(files))
    assert read(tmp_path / "a.txt.gz")[0].text == "plain"
    refused(tmp_path / "bomb.txt.gz", r"bomb\.txt\.gz: unpacked it has more than 1,000,000 bytes", max_file_bytes=10**6)
    refused(tmp_path / "cut.txt.gz", r"cut\.txt\.gz: it is not a whole gzip file")
    refused(tmp_path / "no.txt.gz", r"no\.txt\.gz: it is not a whole gzip file")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"fine\nfine\ncaf\xe9\n", r"a\.txt, line 3: byte 0xe9 is not UTF-8"),
        ("text".encode("utf-16"), "UTF-16; save it as UTF-8"),
        (b"ab\n\0", r"a\.txt, line 2: a NUL byte"),
        (b"", "there is no text"),
        (b"x" * 2001, "more than 2,000 bytes"),
    ],
)
def test_what_is_no_text_is_refused_with_file_and_line(tmp_path: Path, content: bytes, match: str) -> None:
    write(tmp_path, {"a.txt": content})
    refused(tmp_path / "a.txt", match, max_file_bytes=2000)


def test_folders_without_text_or_with_too_much_of_it_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {"empty/image.png": b"", "many/a.txt": "aaa", "many/b.txt": "bbb"})
    refused(tmp_path / "empty", "there are no text files")
    refused(tmp_path / "many", "more than 1 text files", max_files=1)
    refused(tmp_path / "many", "more than 5 characters", max_total_characters=5)
    refused(tmp_path / "nowhere", "no such file or folder")


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_fields_of_json_lines_with_few_values_become_labels(tmp_path: Path) -> None:
    rows = [
        {"text": f"text {i}", "label": "ab"[i % 2], "year": 2000 + i % 2, "ok": i < 5, "title": f"t{i}", "same": "s"}
        for i in range(10)
    ]
    write(tmp_path, {"a.jsonl": lines(*rows) + "\n"})
    documents = read(tmp_path / "a.jsonl")
    assert [d.text for d in documents] == [f"text {i}" for i in range(10)]
    assert dict(documents[0].labels) == {"label": "a", "year": "2000", "ok": "true"}
    assert documents[3].id == "a.jsonl:4"
    assert "year" not in read(tmp_path / "a.jsonl", max_values=1)[0].labels


def test_json_lines_may_label_parts_and_name_themselves(tmp_path: Path) -> None:
    row = {"id": "first", "text": "naïve 😀 x", "spans": {"kind": [[6, 7, "emoji"], [0, 5, "word"]]}}
    write(tmp_path, {"a.ndjson.gz": gzip.compress(lines(row).encode())})
    (document,) = read(tmp_path / "a.ndjson.gz")
    assert document.id == "first"
    assert document.spans == {"kind": [Span(0, 5, "word"), Span(6, 7, "emoji")]}


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("{broken", "it is not JSON"),
        ("[1, 2]", "not a JSON object"),
        ('{"txt": "a"}', "no `text` that is a string"),
        ('{"text": 3}', "no `text` that is a string"),
        ('{"text": "\\ud800"}', "surrogate"),
        ('{"text": "ab", "spans": {"k": [[0, 3, "v"]]}}', "is not .start, end, value. within 2 characters"),
        ('{"text": "ab", "spans": {"k": [[0, 2, "v"], [1, 2, "w"]]}}', "overlap"),
        ('{"text": "ab", "spans": {"k": 1}}', "are not a list"),
        ('{"text": "ab", "spans": [1]}', "not an object of lists"),
        ('{"text": "ab", "k": "x", "spans": {"k": [[0, 1, "v"]]}}', "whole document and parts"),
        ('{"text": "a", "n": ' + "9" * 5000 + "}", "it is not JSON"),
        ("[" * 100_000, "it is not JSON"),
    ],
)
def test_a_bad_line_of_json_is_named(tmp_path: Path, line: str, match: str) -> None:
    write(tmp_path, {"a.jsonl": '{"text": "fine"}\r\n\r\n' + line + "\n"})
    refused(tmp_path / "a.jsonl", r"^a\.jsonl, line 3: .*" + match)
