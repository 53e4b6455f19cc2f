"""Uploads: what a checkpoint is made of gets in, anything else gets one sentence and leaves nothing behind."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import stat
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from starlette.testclient import TestClient

from moescope.store import Store
from moescope.trace.io import write_trace
from moescope_server.app import create_app
from moescope_server.settings import Settings
from synthetic import make_trace

UPLOAD = "/api/checkpoints/upload"
Files = list[tuple[str, bytes]]


def files_of(folder: Path, prefix: str = "") -> Files:
    return [
        (prefix + path.relative_to(folder).as_posix(), path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]


def zipped(files: Files, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", compression) as archive:
        for name, content in files:
            archive.writestr(name, content)
    return made.getvalue()


def send(client: TestClient, files: Files) -> Any:
    return client.post(UPLOAD, files=[("files", item) for item in files])


def everything(store: Store) -> dict[str, bytes]:
    """Every file below the home, but for the database."""
    return {
        path.relative_to(store.home).as_posix(): path.read_bytes()
        for path in store.home.rglob("*")
        if path.is_file() and not path.name.startswith("moescope.sqlite")
    }


@pytest.fixture
def untouched(client: TestClient, store: Store) -> Iterator[None]:
    """Whatever the test does leaves no file, no folder and no row."""
    before = everything(store), sorted(store.home.rglob("*"))
    yield
    assert (everything(store), sorted(store.home.rglob("*"))) == before
    assert store.checkpoints() == [] and store.traces() == []


@pytest.mark.parametrize("form", ["files", "folder", "zip", "zip of a folder"])
def test_a_checkpoint_is_taken_in_every_form(client: TestClient, store: Store, checkpoint: Path, form: str) -> None:
    nested = files_of(checkpoint, "my model/")
    sent = {
        "files": files_of(checkpoint),
        "folder": [*nested, ("my model/run.py", b"print()"), ("my model/.DS_Store", b"x")],
        "zip": [("my model.zip", zipped(files_of(checkpoint)))],
        "zip of a folder": [("archive.zip", zipped(nested, zipfile.ZIP_STORED))],
    }[form]
    answer = send(client, sent)
    assert answer.status_code == 200, answer.text
    made = answer.json()
    assert (made["origin"], made["family"], made["kind"], made["problems"]) == ("upload", "moescope", "patches", [])
    assert [layer["num_experts"] for layer in made["layers"]] == [4, 4]
    assert made["name"] == ("my model" if form != "files" else "moescope checkpoint")
    place = store.home / "checkpoints" / made["id"]
    assert dict(files_of(place)) == dict(files_of(checkpoint))
    assert list(store.staging.iterdir()) == []
    assert [row["id"] for row in client.get("/api/checkpoints").json()] == [made["id"]]
    assert client.get(f"/api/checkpoints/{made['id']}").json() == made
    assert client.delete(f"/api/checkpoints/{made['id']}").status_code == 204
    assert not place.exists() and client.get("/api/checkpoints").json() == []


def test_a_lone_trace_becomes_a_trace(client: TestClient, store: Store, tmp_path: Path) -> None:
    write_trace(make_trace(tokens=300, docs=4), tmp_path / "mine.safetensors")
    answer = send(client, [("mine.safetensors", (tmp_path / "mine.safetensors").read_bytes())])
    assert answer.status_code == 200, answer.text
    made = answer.json()
    assert (made["name"], made["origin"], made["tokens"], made["documents"]) == ("mine", "upload", 300, 4)
    assert client.get(f"/api/traces/{made['id']}/tokens").json()["total"] == 300
    assert list(store.staging.iterdir()) == []


def test_a_large_file_arrives_whole(client: TestClient, store: Store, checkpoint: Path) -> None:
    """Larger than every buffer on the way: the card grows, and comes back to the byte."""
    card = json.dumps({"title": "x" * 9_000_000}).encode()
    sent = [(name, card if name == "card.json" else content) for name, content in files_of(checkpoint)]
    made = send(client, [*sent, ("notes.md", b"y" * 5_000_001)]).json()
    assert (store.home / "checkpoints" / made["id"] / "notes.md").read_bytes() == b"y" * 5_000_001


def changed(folder: Path, **files: bytes | None) -> Files:
    """The checkpoint's files with some replaced (None: left out); underscores in names stand for dots."""
    wanted = {name.replace("_", "."): content for name, content in files.items()}
    kept = [(name, content) for name, content in files_of(folder) if name not in wanted]
    return kept + [(name, content) for name, content in wanted.items() if content is not None]


def poisoned(folder: Path) -> bytes:
    from safetensors.numpy import save

    tensors = load_file(folder / "model.safetensors")
    name = max(tensors, key=lambda key: tensors[key].size)
    tensors[name] = tensors[name].copy()
    tensors[name].flat[-1] = np.nan
    return save(tensors)


def with_experts(folder: Path, count: int) -> bytes:
    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: count if key == "num_experts" else walk(item) for key, item in value.items()}
        return value

    return json.dumps(walk(json.loads((folder / "config.json").read_text()))).encode()


def linked(folder: Path) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in files_of(folder):
            archive.writestr(name, content)
        link = zipfile.ZipInfo("tokenizer.json")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    return made.getvalue()


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


ATTACKS: dict[str, tuple[Callable[[Path], Files], str]] = {
    "zip slip": (lambda f: [("a.zip", zipped([*files_of(f), ("../../evil.json", b"{}")]))], "outside"),
    "zip slip, absolute": (lambda f: [("a.zip", zipped([("/tmp/evil.json", b"{}")]))], "absolute"),
    "zip bomb": (lambda f: [("a.zip", zipped([*files_of(f), ("big.txt", bytes(400_000_000))]))], "zip bomb"),
    "a link in the archive": (lambda f: [("a.zip", linked(f))], "link"),
    "a zip that is none": (lambda f: [("a.zip", b"PK\x03\x04 nonsense")], "not a zip archive"),
    "a zip beside others": (lambda f: [("a.zip", zipped(files_of(f))), *files_of(f)], "alone"),
    "an empty zip": (lambda f: [("a.zip", zipped([]))], "no config.json"),
    "truncated weights": (lambda f: changed(f, model_safetensors=weights(f)[:-50]), "truncated"),
    "a lying header": (
        lambda f: changed(f, model_safetensors=weights(f).replace(b'"dtype":"F32"', b'"dtype":"F64"', 1)),
        "offsets|dtype",
    ),
    "a header of 200 MB": (lambda f: changed(f, model_safetensors=struct.pack("<Q", 200_000_000) + b"{"), "claims"),
    "a pickle renamed": (lambda f: changed(f, model_safetensors=pickle.dumps({"a": 1})), "pickle"),
    "a lone pickle renamed": (lambda f: [("model.safetensors", pickle.dumps([1]))], "pickle"),
    "a pickle by name": (lambda f: [*files_of(f), ("pytorch_model.bin", b"x")], "pickle"),
    "weights that are NaN": (lambda f: changed(f, model_safetensors=poisoned(f)), "not finite|NaN"),
    "E = 0": (lambda f: changed(f, config_json=with_experts(f, 0)), "num_experts"),
    "another E": (lambda f: changed(f, config_json=with_experts(f, 5)), ""),
    "no weights": (lambda f: changed(f, model_safetensors=None), "model.safetensors"),
    "no config": (lambda f: changed(f, config_json=None), "config.json"),
    "weights alone": (lambda f: [("model.safetensors", weights(f))], "without a config.json"),
    "config is no JSON": (lambda f: changed(f, config_json=b"{"), "JSON"),
    "names that climb": (lambda f: [("../../../evil.json", b"{}"), *files_of(f)], "outside"),
    "an absolute name": (lambda f: [("/tmp/evil.json", b"{}")], "absolute"),
    "a name twice": (lambda f: [*files_of(f), ("CONFIG.json", b"{}")], "two files"),
    "a file below a file": (lambda f: [*files_of(f), ("config.json/x.json", b"{}")], "both a file and a folder"),
    "nothing useful": (lambda f: [("photo.jpg", b"x")], "belongs to a checkpoint"),
    "a trace that lies": (lambda f: [("t.safetensors", lying_trace())], ""),
}


def lying_trace() -> bytes:
    from safetensors.numpy import save

    meta = json.dumps({"version": 1, "labels": {}, "layers": [], "kind": "text", "model": {}, "data": {}})
    return save({"token.doc": np.arange(3, dtype=np.int32)[::-1].copy()}, metadata={"moescope_trace": meta})


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.usefixtures("untouched")
def test_an_attack_is_refused_in_one_sentence(client: TestClient, checkpoint: Path, name: str) -> None:
    make, words = ATTACKS[name]
    answer = send(client, make(checkpoint))
    assert answer.status_code == 400, answer.text
    detail = answer.json()["detail"]
    assert any(word in detail for word in words.split("|")), detail
    assert "\n" not in detail and len(detail) < 500
    assert not Path("/tmp/evil.json").exists()


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (b"", "multipart/form-data; boundary=x", "not valid multipart|no file"),
        (b"{}", "application/json", "must be multipart/form-data"),
        (b"x", "multipart/form-data", "must be multipart/form-data"),
        (b"--x\r\nrubbish", "multipart/form-data; boundary=x", "cut off"),
        (b"--x--\r\n", "multipart/form-data; boundary=x", "no file"),
        (
            b'--x\r\ncontent-disposition: form-data; name="files"; filename="config.json"\r\n\r\n{"cut',
            "multipart/form-data; boundary=x",
            "cut off|config.json",
        ),
        (
            b'--x\r\ncontent-disposition: form-data; name="files"; filename="\xff.json"\r\n\r\n{}\r\n--x--\r\n',
            "multipart/form-data; boundary=x",
            "not valid UTF-8",
        ),
        (b"--x\r\n" + b"a: b\r\n" * 9000, "multipart/form-data; boundary=x", "not valid multipart"),
    ],
)
def test_a_body_that_is_no_upload_is_refused(client: TestClient, body: bytes, kind: str, words: str) -> None:
    answer = client.post(UPLOAD, content=body, headers={"content-type": kind})
    assert answer.status_code == 400, answer.text
    assert any(word in answer.json()["detail"] for word in words.split("|")), answer.text


def test_an_upload_larger_than_the_limit_is_refused_declared_or_not(
    store: Store, settings: Settings, checkpoint: Path
) -> None:
    from dataclasses import replace

    app = create_app(store, replace(settings, max_upload=20_000))
    headers = {"authorization": f"Bearer {settings.token}"}
    with TestClient(app, base_url="http://localhost", headers=headers) as client:
        before = everything(store)
        declared = send(client, [*files_of(checkpoint), ("notes.txt", b"x" * 30_000)])
        head = b'--x\r\ncontent-disposition: form-data; name="files"; filename="notes.txt"\r\n\r\n'
        kind = {"content-type": "multipart/form-data; boundary=x"}
        counted = client.post(UPLOAD, content=(part for part in [head, *[b"x" * 5_000] * 8]), headers=kind)
        for answer in (declared, counted):
            assert answer.status_code == 413 and "20,000 bytes" in answer.json()["detail"]
        assert everything(store) == before and list(store.staging.iterdir()) == []


def test_an_upload_that_cannot_fit_the_disk_is_refused_before_it_is_read(
    client: TestClient, store: Store, monkeypatch: pytest.MonkeyPatch, checkpoint: Path
) -> None:
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 9, 1))
    answer = send(client, files_of(checkpoint))
    assert answer.status_code == 400 and "has 1 left" in answer.json()["detail"]


def test_a_checkpoint_is_opened_in_place_once_and_only_forgotten(
    client: TestClient, store: Store, checkpoint: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(checkpoint, mine)
    first = client.post("/api/checkpoints/open", json={"path": str(mine)}).json()
    again = client.post("/api/checkpoints/open", json={"path": str(mine / ".." / "mine")}).json()
    assert first["id"] == again["id"] and first["origin"] == "path" and first["path"] == str(mine)
    assert client.delete(f"/api/checkpoints/{first['id']}").status_code == 204
    assert (mine / "config.json").is_file()


def test_a_trace_is_opened_in_place_once_and_only_forgotten(client: TestClient, tmp_path: Path) -> None:
    mine = tmp_path / "mine.safetensors"
    write_trace(make_trace(tokens=300, docs=4), mine)
    first, again = (client.post("/api/checkpoints/open", json={"path": str(mine)}).json() for _ in range(2))
    assert first == again and (first["origin"], first["name"], first["tokens"]) == ("path", "mine", 300)
    assert client.delete(f"/api/traces/{first['id']}").status_code == 204
    assert mine.is_file() and client.get("/api/traces").json() == []


def test_an_opened_checkpoint_that_breaks_says_so_and_hides_nothing_else(
    client: TestClient, checkpoint: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(checkpoint, mine)
    opened = client.post("/api/checkpoints/open", json={"path": str(mine)}).json()
    other = send(client, files_of(checkpoint)).json()
    (mine / "config.json").write_text("{")
    rows = {row["id"]: row for row in client.get("/api/checkpoints").json()}
    assert rows[other["id"]]["problems"] == []
    assert rows[opened["id"]]["family"] is None and "JSON" in rows[opened["id"]]["problems"][0]
    shutil.rmtree(mine)
    assert client.get(f"/api/checkpoints/{opened['id']}").json()["problems"]


@pytest.mark.usefixtures("untouched")
def test_a_place_that_holds_no_checkpoint_is_not_opened(client: TestClient, tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"x")
    save_file({"a": np.zeros(1)}, tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "weights.safetensors", tmp_path / "model.safetensors"):
        answer = client.post("/api/checkpoints/open", json={"path": str(path)})
        assert answer.status_code == 400 and answer.json()["detail"]


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("fault", ["a long boundary", "no last boundary"])
def test_a_body_that_is_not_multipart_is_refused(client: TestClient, checkpoint: Path, fault: str) -> None:
    boundary = "b" * 5000 if fault == "a long boundary" else "b"
    parts = [
        f'--{boundary}\r\ncontent-disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode() + content
        for name, content in files_of(checkpoint)
    ]
    kind = {"content-type": f"multipart/form-data; boundary={boundary}"}
    answer = client.post(UPLOAD, content=b"\r\n".join(parts), headers=kind)
    assert answer.status_code == 400, answer.text
    assert "boundary" in answer.json()["detail"] or "cut off" in answer.json()["detail"]
