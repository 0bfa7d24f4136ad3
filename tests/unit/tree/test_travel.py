"""A tree as index and bytes, made again elsewhere; an index from outside makes nothing outside."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.errors import BuilderError
from builder.tree import Entry, Index, changed, contents, restore, scan

ROOT = Entry("", "dir", 0o755, os.getuid(), os.getgid())


def entry(path: str, kind: str = "file", **more: object) -> Entry:
    return ROOT._replace(path=path, type=kind, mode=0o644, **more)  # type: ignore[arg-type]


def again(source: Path, dest: Path, cut: int = 1000) -> Index:
    """Make `source` again at `dest`, its bytes coming in pieces of `cut`; the index of what came out."""
    index = scan(source)
    data = b"".join(contents(index, source))
    dest.mkdir()
    restore(index, dest, (data[start : start + cut] for start in range(0, len(data), cut)))
    made = scan(dest)
    assert made.digest == index.digest
    return made


def test_every_kind_of_member_comes_out_as_it_was(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "etc/empty").mkdir(parents=True)
    (source / "etc/closed").write_bytes(b"secret")
    (source / "etc/closed").chmod(0o400)
    (source / "run").write_bytes(b"#!/bin/sh\n")
    (source / "run").chmod(0o4755)
    os.link(source / "run", source / "same")
    (source / "copy").write_bytes(b"#!/bin/sh\n")
    (source / "link").symlink_to("/etc/closed")
    os.mkfifo(source / "fifo", 0o600)
    (source / os.fsdecode(b"odd \xff\n name")).write_bytes(b"")
    (source / "etc/closed-folder").mkdir()
    (source / "etc/closed-folder/inside").write_bytes(b"1")
    os.setxattr(source / "copy", "user.note", b"\0\xff")
    os.setxattr(source / "etc/empty", "user.overlay.opaque", b"y")
    for path in [*source.rglob("*"), source]:
        os.utime(path, (1_000_000_000, 1_000_000_000), follow_symlinks=False)
    (source / "etc/closed-folder").chmod(0o700)
    made = again(source, tmp_path / "made")
    assert changed(made, tmp_path / "made") == []
    assert os.stat(tmp_path / "made/run").st_nlink == 2
    assert os.stat(tmp_path / "made/copy").st_nlink == 1


def test_holes_take_no_room(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    data = bytearray(8 << 20)
    data[3_000_000:3_000_010] = b"0123456789"
    (tmp_path / "source/sparse").write_bytes(data + b"end")
    (tmp_path / "source/after").write_bytes(b"zz")
    again(tmp_path / "source", tmp_path / "made", 999_999)
    assert (tmp_path / "made/sparse").read_bytes() == data + b"end"
    assert os.stat(tmp_path / "made/sparse").st_blocks * 512 < 1 << 20


@settings(max_examples=30, deadline=None)
@given(st.lists(st.binary(max_size=50), max_size=6), st.integers(1, 60))
def test_the_cut_of_the_stream_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, files: list[bytes], cut: int
) -> None:
    folder = tmp_path_factory.mktemp("case")
    (folder / "source").mkdir()
    for number, data in enumerate(files):
        (folder / "source" / str(number)).write_bytes(data)
    os.utime(folder / "source", (1, 1))
    for path in (folder / "source").iterdir():
        os.utime(path, (1, 1))
    again(folder / "source", folder / "made", cut)


@pytest.mark.parametrize(
    ("entries", "data", "said"),
    [
        ([entry("etc", "file")], b"", "'etc': no member of a layer (not the root)"),
        ([ROOT, entry("../out")], b"", "'../out': no member of a layer (not in a folder"),
        ([ROOT, entry("..", "dir")], b"", "'..': no member"),
        ([ROOT, entry("/etc/out")], b"", "'/etc/out': no member"),
        ([ROOT, entry("a", "link", target="/etc"), entry("a/out")], b"", "'a/out': no member"),
        ([ROOT, entry("a/b")], b"", "'a/b': no member"),
        ([ROOT, entry("a\0b")], b"", "no member"),
        ([ROOT, entry("b"), entry("a")], b"", "'a': no member of a layer (out of order)"),
        ([ROOT, entry("a"), entry("a")], b"", "'a': no member of a layer (out of order)"),
        ([ROOT, entry("a", "hardlink", target="/etc/passwd")], b"", "'a': no member of a layer (a name of no file"),
        ([ROOT, entry("a", "link", target="x"), entry("b", "hardlink", target="a")], b"", "'b': no member"),
        ([ROOT, entry("a", "device")], b"", "'a': no member of a layer (of type 'device')"),
        ([ROOT, entry("a", size=1 << 60)], b"1", "'a': no member of a layer (its bytes are missing)"),
        ([ROOT, entry("a", size="1")], b"1", "'a': no member"),
        ([ROOT, entry("a", uid="root")], b"", "'a': no member"),
        ([ROOT, entry("a", uid=1 << 70)], b"", "'a': no member"),
        ([ROOT, entry("a", size=1)], b"12", "more bytes than its files have"),
        ([ROOT, entry("x" * 300)], b"", "File name too long"),
    ],
)
def test_an_index_from_outside_is_not_trusted(tmp_path: Path, entries: list[Entry], data: bytes, said: str) -> None:
    (tmp_path / "deep/root").mkdir(parents=True)
    with pytest.raises(BuilderError) as caught:
        restore(Index(tuple(entries), ""), tmp_path / "deep/root", one(data))
    assert said in str(caught.value)
    assert os.listdir(tmp_path) == ["deep"]
    assert os.listdir(tmp_path / "deep") == ["root"]


def one(data: bytes) -> Iterable[bytes]:
    return [data] if data else []


def test_a_file_that_grew_is_no_longer_what_the_index_says(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    index = scan(tmp_path)
    (tmp_path / "a").write_bytes(b"12")
    with pytest.raises(BuilderError, match="a: has another size"):
        list(contents(index, tmp_path))
