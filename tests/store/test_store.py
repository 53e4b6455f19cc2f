"""Laws of the home folder: what is kept, what is only known, and what may be deleted."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import stat
from pathlib import Path

import pytest

from moescope.errors import InputError
from moescope.store import CheckpointRow, NotFoundError, Store, TraceRow, default_home
from moescope.store.ids import is_id, new_id, slug
from moescope.store.schema import MIGRATIONS
from moescope.trace.io import write_trace
from synthetic import make_trace


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    folder = tmp_path / "samples"
    place = folder / "Tiny LM"
    (place / "traces").mkdir(parents=True)
    (place / "config.json").write_text("{}")
    (place / "card.json").write_text(json.dumps({"title": "A tiny model", "description": "Of words."}))
    write_trace(make_trace(tokens=60, docs=3), place / "trace.safetensors")
    write_trace(make_trace(tokens=70, docs=3), place / "traces" / "other.safetensors")
    (folder / "notes").mkdir()
    (folder / "make.py").write_text("")
    return folder


@pytest.fixture
def store(home: Path, samples: Path) -> Store:
    return Store(home, samples=samples)


def test_the_home_is_private_and_comes_from_argument_or_environment(tmp_path: Path) -> None:
    store = Store(tmp_path / "new" / "home", samples=tmp_path)
    assert stat.S_IMODE(store.home.stat().st_mode) == 0o700
    assert default_home({"MOESCOPE_HOME": "/elsewhere"}) == Path("/elsewhere")
    assert default_home({}) == Path.home() / ".moescope"


def test_a_home_that_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be used as the home folder"):
        Store(tmp_path / "file", samples=tmp_path)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "moescope.sqlite").write_bytes(b"this is no database, but it is long enough to be looked at" * 20)
    with pytest.raises(InputError, match="cannot be used as moescope's database"):
        Store(broken, samples=tmp_path)


def test_a_database_of_a_newer_release_is_left_alone(home: Path, samples: Path) -> None:
    Store(home, samples=samples).close()
    with sqlite3.connect(home / "moescope.sqlite") as connection:
        connection.execute(f"PRAGMA user_version={len(MIGRATIONS) + 1}")
    connection.close()
    with pytest.raises(InputError, match="written by a newer moescope"):
        Store(home, samples=samples)


@pytest.mark.parametrize("name", ["A Trace: über 64 experts!", "", "../../etc/passwd", "x" * 500, "日本", "-- '; DROP"])
def test_ids_are_safe_folder_names_whatever_the_name_was(name: str) -> None:
    made = {new_id(name) for _ in range(50)}
    assert len(made) == 50
    assert all(is_id(id) and re.fullmatch(r"[a-z0-9-]{1,80}", id) and not id.startswith("-") for id in made)
    assert len(slug(name)) <= 48


def test_samples_appear_where_they_are_with_their_card_and_traces(store: Store, samples: Path) -> None:
    (row,) = store.checkpoints()
    assert (row.id, row.name, row.description, row.origin) == ("sample-tiny-lm", "A tiny model", "Of words.", "sample")
    assert Path(row.path) == samples / "Tiny LM"
    first, second = sorted(store.traces(), key=lambda trace: trace.id)
    assert (first.id, first.tokens, first.checkpoint) == ("sample-tiny-lm", 60, row.id)
    assert (second.id, second.tokens, second.checkpoint) == ("sample-tiny-lm-other", 70, row.id)
    assert [item["name"] for item in first.labels] == ["domain", "syntax"]
    assert [item["num_experts"] for item in first.layers] == [8, 8, 8]
    assert not any(path.is_file() for path in (store.home / "checkpoints").rglob("*"))


def test_samples_follow_their_folder(store: Store, samples: Path) -> None:
    store.sync_samples()
    write_trace(make_trace(tokens=80, docs=3), samples / "Tiny LM" / "trace.safetensors")
    assert store.trace("sample-tiny-lm").tokens == 60
    assert {trace.tokens for trace in store.traces()} == {70, 80}
    (samples / "Tiny LM" / "config.json").unlink()
    assert store.checkpoints() == [] and store.traces() == []


def test_an_unreadable_sample_trace_hides_nothing_else(store: Store, samples: Path) -> None:
    (samples / "Tiny LM" / "traces" / "bad.safetensors").write_bytes(b"no")
    assert len(store.traces()) == 2 and len(store.checkpoints()) == 1


def test_samples_are_never_deleted(store: Store, samples: Path) -> None:
    store.sync_samples()
    for forget in (store.delete_checkpoint, store.delete_trace):
        with pytest.raises(InputError, match="comes with moescope"):
            forget("sample-tiny-lm")
    assert (samples / "Tiny LM" / "trace.safetensors").is_file()
    assert len(store.checkpoints()) == 1 and len(store.traces()) == 2


def test_an_upload_is_deleted_with_its_files_and_a_path_is_only_forgotten(store: Store, tmp_path: Path) -> None:
    inside, outside = store.home / "checkpoints" / "up", tmp_path / "mine"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
    uploaded = store.add_checkpoint(inside, "Up", "upload", id="up")
    opened = store.add_checkpoint(outside, "Mine", "path")
    for row in (uploaded, opened):
        store.delete_checkpoint(row.id)
        with pytest.raises(NotFoundError, match="There is no checkpoint"):
            store.checkpoint(row.id)
    assert not inside.exists() and (outside / "config.json").is_file()
    assert list(store.staging.iterdir()) == []


def test_nothing_outside_the_home_is_ever_removed(store: Store, tmp_path: Path) -> None:
    outside = tmp_path / "precious"
    outside.mkdir()
    row = store.add_checkpoint(outside, "A lie", "upload")
    with pytest.raises(ValueError, match="not inside the home"):
        store.delete_checkpoint(row.id)
    assert outside.is_dir()


def test_a_trace_outlives_its_checkpoint_but_not_its_run(store: Store) -> None:
    folder = store.home / "checkpoints" / "up"
    folder.mkdir()
    store.add_checkpoint(folder, "Up", "upload", id="up")
    id, path = store.new_trace_path("One")
    write_trace(make_trace(tokens=50, docs=3), path)
    store.add_trace(path, "One", "recorded", id=id, checkpoint="up")
    store.delete_checkpoint("up")
    assert store.trace(id).checkpoint is None and path.is_file()
    run = store.add_run("A run", "preset", {})
    snapshot = store.run_folder(run.id) / "snapshots" / "step-000001.safetensors"
    snapshot.parent.mkdir(parents=True)
    write_trace(make_trace(tokens=50, docs=3), snapshot)
    made = store.add_trace(snapshot, "Snap", "run", run=run.id, step=1)
    with pytest.raises(InputError, match="is queued; stop it before deleting it"):
        store.delete_run(run.id)
    store.database.update(type(run), run.id, status="finished")
    store.delete_run(run.id)
    assert not snapshot.exists()
    with pytest.raises(NotFoundError):
        store.trace(made.id)
    store.delete_trace(id)
    assert not path.exists()


def test_a_row_cannot_point_at_a_run_that_is_not_there(store: Store, samples: Path) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        store.add_trace(samples / "Tiny LM" / "trace.safetensors", "x", "run", run="no-such-run")


@pytest.mark.parametrize("id", ["..", "../x", "A", "a b", "", "x" * 81, "a/b"])
def test_odd_ids_are_not_found(store: Store, id: str) -> None:
    for get in (store.checkpoint, store.trace, store.run, store.job, store.run_folder):
        with pytest.raises(NotFoundError):
            get(id)


def test_a_card_is_read_once_until_the_files_change(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def describe(path: Path) -> dict[str, object]:
        read.append(path)
        if len(read) == 3:
            raise InputError("It is broken.")
        return {"family": "made-up", "params": len(read)}

    monkeypatch.setattr("moescope.store.store.describe_checkpoint", describe)
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    row = store.add_checkpoint(folder, "Mine", "path")
    assert store.card(row) == store.card(row) == {"problems": [], "family": "made-up", "params": 1, "size_bytes": 2}
    (folder / "config.json").write_text('{"a": 1}')
    assert store.card(row)["params"] == 2
    (folder / "model.safetensors").write_bytes(b"x")
    assert store.card(row)["problems"] == ["It is broken."]
    assert len(read) == 3


def test_half_done_work_is_cleared_but_not_under_a_running_job(store: Store) -> None:
    (store.staging / "upload-1").mkdir()
    (store.staging / "upload-1" / "file").write_text("x")
    partial = store.home / "traces" / ".a.safetensors.1.partial"
    partial.write_text("x")
    job = store.add_job("trace", {})
    store.database.update(type(job), job.id, status="running")
    store.clear_remains()
    assert list(store.staging.iterdir()) == [] and partial.exists()
    store.database.update(type(job), job.id, status="failed")
    store.clear_remains()
    assert not partial.exists()


def test_rows_come_back_as_they_went_in(store: Store) -> None:
    job = store.add_job("trace", {"text": "é", "nested": {"a": [1, None]}})
    assert store.job(job.id) == job and store.jobs(status=["queued"], kind="trace") == [job]
    assert store.jobs(status="running") == []
    store.sync_samples()
    for kind in (CheckpointRow, TraceRow):
        for row in store.database.all(kind):
            store.database.put(row)
            assert store.database.get(kind, row.id) == row


def test_a_change_happens_only_while_its_condition_holds(store: Store) -> None:
    job = store.add_job("trace", {})
    assert store.database.update(type(job), job.id, where={"status": "queued"}, status="running")
    assert not store.database.update(type(job), job.id, where={"status": "queued"}, status="cancelled")
    assert store.job(job.id).status == "running"


def test_a_transaction_is_undone_as_a_whole(store: Store) -> None:
    with pytest.raises(RuntimeError), store.database.transaction():
        store.add_job("trace", {})
        with store.database.transaction():
            store.add_job("train", {})
        raise RuntimeError
    assert store.jobs() == []


def test_the_same_file_gives_the_same_stamp_and_another_does_not(tmp_path: Path) -> None:
    from moescope.store.describe import stamp

    file = tmp_path / "a.json"
    file.write_text("one")
    first = stamp(tmp_path)
    assert first == stamp(tmp_path)
    os.utime(file, ns=(1, 1))
    assert stamp(tmp_path) != first
