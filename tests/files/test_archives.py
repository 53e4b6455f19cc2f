"""Attacks by archive, runnable: each is refused in one sentence and leaves nothing behind."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from moescope.errors import InputError
from moescope.files import ArchiveLimits, extract_archive, read_json, safe_relative, staged, usual_mode

Maker = Callable[[zipfile.ZipFile], None]


def archive(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in members:
            made.writestr(name, content)
    return path


def unix(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    return info


def attack(path: Path, match: str, limits: ArchiveLimits | None = None) -> None:
    """The refusal is one sentence, and the folder looks afterwards as it did before."""
    before = sorted(path.parent.rglob("*"))
    with pytest.raises(InputError, match=match) as caught, staged(path.parent / "checkpoint") as work:
        extract_archive(path, work, limits)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    assert sorted(path.parent.rglob("*")) == before


def test_what_a_checkpoint_needs_is_extracted_and_the_rest_left_out(tmp_path: Path) -> None:
    path = archive(
        tmp_path / "a.zip",
        ("m/config.json", b"{}"),
        ("m/model.safetensors", b"123"),
        ("m/sub/tokenizer.json", b"[]"),
        ("m/modeling_custom.py", b"import os"),
        ("m/.gitattributes", b""),
        ("__MACOSX/m/config.json", b"x"),
    )
    with staged(tmp_path / "out") as work:
        made = extract_archive(path, work)
        assert [p.relative_to(work).as_posix() for p in made] == [
            "m/config.json",
            "m/model.safetensors",
            "m/sub/tokenizer.json",
        ]
    assert (tmp_path / "out/m/model.safetensors").read_bytes() == b"123"
    assert len([p for p in (tmp_path / "out").rglob("*") if p.is_file()]) == 3
    usual = tmp_path / "usual"
    usual.touch()
    assert stat.S_IMODE((tmp_path / "out/m/config.json").stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)


SLIPS = [
    "../evil.json",
    "a/../../evil.json",
    "/etc/evil.json",
    "C:/evil.json",
    "..\\evil.json",
    "a\x00.json",
    "..",
    "x/..",
    "",
    "\n.json",
]


@pytest.mark.parametrize("name", SLIPS)
def test_zip_slip(name: str, tmp_path: Path) -> None:
    placeholder = "Q" * max(len(name), 1)
    path = archive(tmp_path / "a.zip", ("config.json", b"{}"), (placeholder, b"{}"))
    if name:  # zipfile itself cleans some names, so they are written into the bytes
        path.write_bytes(path.read_bytes().replace(placeholder.encode(), name.encode()))
    else:
        path = archive(tmp_path / "a.zip", ("config.json", b"{}"), (" ", b"{}"))
    attack(path, "file name")
    if name:
        with pytest.raises(InputError):
            safe_relative(name)


@pytest.mark.parametrize("name", ["a.json", "a/b/c.safetensors", "./a.json", "ü/ä.json", "a//b.json"])
def test_plain_names_stay_below_their_folder(name: str, tmp_path: Path) -> None:
    assert (tmp_path / safe_relative(name)).resolve().is_relative_to(tmp_path.resolve())


def test_unwanted_members_are_checked_too(tmp_path: Path) -> None:
    attack(archive(tmp_path / "a.zip", ("../evil.py", b"")), "points outside")


@pytest.mark.parametrize(
    ("mode", "match"),
    [
        (stat.S_IFLNK | 0o777, "symbolic link"),
        (stat.S_IFCHR, "device"),
        (stat.S_IFIFO, "device"),
        (stat.S_IFSOCK, "device"),
    ],
)
def test_links_and_special_files(mode: int, match: str, tmp_path: Path) -> None:
    attack(archive(tmp_path / "a.zip", (unix("config.json", mode), b"/etc/passwd")), match)


def test_a_zip_bomb_by_ratio(tmp_path: Path) -> None:
    bomb = archive(tmp_path / "a.zip", ("model.safetensors", bytes(8 << 20)))
    assert bomb.stat().st_size < 16_000
    attack(bomb, "zip bomb", ArchiveLimits(ratio_floor=1 << 20))


def test_a_zip_bomb_by_size_in_all(tmp_path: Path) -> None:
    members = [(f"model-{i}.safetensors", bytes(1 << 20)) for i in range(4)]
    attack(archive(tmp_path / "a.zip", *members), "zip bomb", ArchiveLimits(total=3 << 20))
    attack(archive(tmp_path / "b.zip", *members), "zip bomb", ArchiveLimits(each=1 << 19))


def test_a_zip_bomb_that_declares_a_small_size(tmp_path: Path) -> None:
    content = bytes(4 << 20)
    path = archive(tmp_path / "a.zip", ("model.safetensors", content))
    crc = struct.pack(
        "<I", zlib.crc32(bytes(1000))
    )  # true of the declared 1,000 bytes, so that cutting it there would pass
    raw = path.read_bytes().replace(struct.pack("<I", len(content)), struct.pack("<I", 1000))
    path.write_bytes(raw.replace(struct.pack("<I", zlib.crc32(content)), crc))
    attack(path, "declares 1,000 bytes but expands to more")


def test_a_member_that_declares_too_much(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", ("model.safetensors", b"x" * 999))
    path.write_bytes(path.read_bytes().replace(struct.pack("<I", 999), struct.pack("<I", 9999)))
    attack(path, "declares 9,999 bytes but holds 999|not a zip archive")


def test_overlapping_members_count_each_time(tmp_path: Path) -> None:
    """Many directory entries for one stretch of data: the sum is what counts."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as first:
        first.writestr("model.safetensors", bytes(2 << 20))
        twin = first.infolist()[0]
        first.filelist += [twin] * 40
    (tmp_path / "a.zip").write_bytes(made.getvalue())
    attack(tmp_path / "a.zip", "twice|zip bomb|Overlapped")


def test_too_many_members(tmp_path: Path) -> None:
    members = [(f"{i}.json", b"") for i in range(30)]
    attack(archive(tmp_path / "a.zip", *members), "30 members, more than the 20", ArchiveLimits(files=20))


def test_a_directory_too_long_to_be_read(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", *[("n" * 900 + f"{i}.json", b"") for i in range(60)])
    attack(path, "lists too many members", ArchiveLimits(files=20))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_that_cannot_be_bounded_is_refused(method: int, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as made:
        made.writestr("config.json", bytes(1000))
    attack(tmp_path / "a.zip", "another way than deflate")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "a/model.PT", "x.ckpt", "x.pkl", ".metadata", "__0_0.distcp"])
def test_pickles_are_refused_by_name(name: str, tmp_path: Path) -> None:
    attack(archive(tmp_path / "a.zip", ("config.json", b"{}"), (name, b"x")), "pickle")


def test_names_that_collide(tmp_path: Path) -> None:
    attack(archive(tmp_path / "a.zip", ("a.json", b"1"), ("./a.json", b"2")), "twice")
    attack(archive(tmp_path / "b.zip", ("a.json", b"1"), ("A.json", b"2")), "twice")
    attack(archive(tmp_path / "c.zip", ("a.json", b"1"), ("a.json/b.json", b"2")), "below a file")


def test_encrypted_and_damaged_archives(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", ("config.json", b"{}" * 500))
    raw = path.read_bytes()
    at = raw.index(b"PK\x01\x02") + 8
    path.write_bytes(raw[:at] + b"\x01" + raw[at + 1 :])
    attack(path, "encrypted")
    path.write_bytes(raw[:45] + b"\xff\xff\xff\xff" + raw[49:])
    attack(path, "damaged|not a zip")
    path.write_bytes(raw[:-30])
    attack(path, "not a zip")
    path.write_bytes(b"")
    attack(path, "not a zip")


def test_staged_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), staged(tmp_path / "x") as work:
        (work / "half").write_text("done")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with staged(tmp_path / "x", staging=tmp_path / "staging") as work:
        (work / "whole").write_text("done")
        assert not (tmp_path / "x").exists() and work.parent == tmp_path / "staging"
    assert (tmp_path / "x/whole").read_text() == "done"
    with pytest.raises(InputError, match="exists already"), staged(tmp_path / "x"):
        pass
    assert (tmp_path / "x/whole").exists()


def test_usual_mode_follows_the_umask(tmp_path: Path) -> None:
    path, usual = tmp_path / "a", tmp_path / "b"
    path.touch(mode=0o600)
    usual_mode(path)
    usual.touch()
    assert path.stat().st_mode == usual.stat().st_mode and sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"[" * 40 + b"]" * 40, "more than 32 levels"),
        (b"[" * 200_000 + b"]" * 200_000, "nested"),
        (b'{"a": 1, "a": 2}', "names 'a' twice"),
        (b"{", "not valid JSON"),
        (b"[Infinity]", "Infinity"),
        (b"\xff\xfe{}", "UTF-8"),
        (b" " * 1_000_001, "larger than"),
    ],
)
def test_hostile_json(text: bytes, match: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(InputError, match=match):
        read_json(tmp_path / "config.json", limit=1_000_000)


def test_json_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a": [1, {"b": null}]}')
    assert read_json(tmp_path / "config.json", depth=3) == {"a": [1, {"b": None}]}
    with pytest.raises(InputError, match="more than 2 levels"):
        read_json(tmp_path / "config.json", depth=2)
