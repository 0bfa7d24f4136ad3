"""Unpacking what nobody vouches for: what is sound comes out, what is not leaves nothing behind."""

import gzip
import io
import lzma
import os
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.errors import BuilderError
from builder.tree import ExtractLimits, extract

Build = Callable[..., Path]


def member(
    name: str, kind: bytes = tarfile.REGTYPE, *, mode: int = 0o644, target: str = "", size: int = 0
) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.linkname, info.size, info.mtime = kind, mode, target, size, 1_700_000_000
    return info


def tar_bytes(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, errors="surrogateescape") as tar:
        for info, data in members:
            info.size = len(data) if data else info.size
            tar.addfile(info, io.BytesIO(data) if data else None)
    return buffer.getvalue()


def file(name: str, data: bytes = b"data", **more: int) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, **more), data


@pytest.fixture
def build(tmp_path: Path) -> Build:
    def make(*members: tuple[tarfile.TarInfo, bytes]) -> Path:
        path = tmp_path / "evil.tar"
        path.write_bytes(tar_bytes(*members))
        return path

    return make


def refused(archive: Path, match: str, **options: object) -> None:
    """`archive` is refused with one line that names it, and nothing is left."""
    dest = archive.parent / "dest"
    before = sorted(os.listdir(archive.parent))
    with pytest.raises(BuilderError, match=match) as caught:
        extract(archive, dest, **options)  # type: ignore[arg-type]
    assert str(caught.value).startswith(str(archive))
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir(archive.parent)) == before


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "tar": bytes,
    "tar.gz": gzip.compress,
    "tar.xz": lzma.compress,
    "tar.zst": zstandard.ZstdCompressor().compress,
    "two zst frames": lambda data: b"".join(
        zstandard.ZstdCompressor().compress(part) for part in (data[:700], data[700:])
    ),
}


@pytest.mark.parametrize("form", PACKERS)
def test_every_form_of_tar_comes_out(tmp_path: Path, form: str) -> None:
    data = tar_bytes(
        (member("./", tarfile.DIRTYPE, mode=0o755), b""),
        file("./bin/tool", b"#!/bin/sh\n", mode=0o4711),
        file("./share/long" + "g" * 150, b"text", mode=0o600),
        (member("./lib", tarfile.SYMTYPE, target="share/../bin"), b""),
        (member("./bin/again", tarfile.LNKTYPE, target="./bin/tool"), b""),
    )
    archive = tmp_path / "archive"
    archive.write_bytes(PACKERS[form](data))
    extract(archive, tmp_path / "dest")
    tool = (tmp_path / "dest/bin/tool").stat()
    assert stat.S_IMODE(tool.st_mode) == 0o755
    assert tool.st_mtime_ns == 1_700_000_000 * 10**9
    assert tool.st_ino == (tmp_path / "dest/bin/again").stat().st_ino
    assert stat.S_IMODE((tmp_path / ("dest/share/long" + "g" * 150)).stat().st_mode) == 0o644
    assert os.readlink(tmp_path / "dest/lib") == "share/../bin"
    assert sorted(os.listdir(tmp_path)) == ["archive", "dest"]


def test_a_zip_comes_out(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr(zipfile.ZipInfo("top/", (2020, 1, 1, 0, 0, 0)), b"")
        run = zipfile.ZipInfo("top/run", (2020, 1, 1, 0, 0, 0))
        run.external_attr = (stat.S_IFREG | 0o755) << 16
        out.writestr(run, b"x" * 5000)
        link = zipfile.ZipInfo("top/link", (2020, 1, 1, 0, 0, 0))
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        out.writestr(link, b"run")
    extract(archive, tmp_path / "dest", strip=1)
    assert (tmp_path / "dest/link").read_bytes() == b"x" * 5000
    assert stat.S_IMODE((tmp_path / "dest/run").stat().st_mode) == 0o755
    assert (tmp_path / "dest/run").stat().st_mtime == 1_577_836_800


def test_strip_drops_leading_names_of_members_and_hard_links(build: Build, tmp_path: Path) -> None:
    archive = build(
        file("README"),
        file("pkg-1/bin/a", b"a"),
        (member("pkg-1/bin/b", tarfile.LNKTYPE, target="pkg-1/bin/a"), b""),
    )
    extract(archive, tmp_path / "dest", strip=1)
    assert sorted(os.listdir(tmp_path / "dest")) == ["bin"]
    assert (tmp_path / "dest/bin/b").read_bytes() == b"a"


def test_the_callers_umask_changes_nothing(build: Build, tmp_path: Path) -> None:
    archive = build(file("deep/er/file"), (member("deep/dir", tarfile.DIRTYPE), b""))
    before = os.umask(0o077)
    try:
        extract(archive, tmp_path / "dest")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "dest").rglob("*")}
    assert modes == {"deep": 0o755, "er": 0o755, "dir": 0o755, "file": 0o644}
    assert stat.S_IMODE((tmp_path / "dest").stat().st_mode) == 0o755


def test_a_folder_that_exists_is_added_to(build: Build, tmp_path: Path) -> None:
    (tmp_path / "dest/bin").mkdir(parents=True)
    (tmp_path / "dest/bin/old").write_text("old")
    extract(build(file("bin/new"), file("lib/x")), tmp_path / "dest")
    assert sorted(path.name for path in (tmp_path / "dest/bin").iterdir()) == ["new", "old"]


@pytest.mark.parametrize("there", ["file", "link"])
def test_what_is_there_is_never_replaced_or_followed(build: Build, tmp_path: Path, there: str) -> None:
    (tmp_path / "dest").mkdir()
    (tmp_path / "elsewhere").mkdir()
    if there == "file":
        (tmp_path / "dest/x").write_text("mine")
    else:
        (tmp_path / "dest/x").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BuilderError, match="is there already"):
        extract(build(file("a"), file("x/y") if there == "link" else file("x")), tmp_path / "dest")
    assert os.listdir(tmp_path / "dest") == ["x"]
    assert os.listdir(tmp_path / "elsewhere") == []


@pytest.mark.parametrize("name", ["../x", "a/../../x", "a/..", "..", "/etc/x", "//x"])
def test_names_that_leave_the_folder(build: Build, name: str) -> None:
    refused(build(file(name)), "leaves the folder|absolute")


@pytest.mark.parametrize("target", ["/etc", "..", "../x", "a/../../x", ""])
def test_links_that_leave_the_folder(build: Build, target: str) -> None:
    refused(build((member("link", tarfile.SYMTYPE, target=target), b"")), "link")


def test_links_that_leave_only_through_another_link(build: Build) -> None:
    members = [
        (member("p/q", tarfile.DIRTYPE), b""),
        (member("p/q/d", tarfile.SYMTYPE, target=".."), b""),
        (member("p/q/x", tarfile.SYMTYPE, target="d/../../etc"), b""),
    ]
    refused(build(*members), "'p/q/x': the link leaves the folder")


def test_links_in_a_circle(build: Build) -> None:
    refused(build((member("a", tarfile.SYMTYPE, target="a/b"), b"")), "link leaves")


def test_writing_through_a_link(build: Build) -> None:
    refused(build((member("a", tarfile.SYMTYPE, target="b"), b""), file("a/x")), "goes through 'a'")


def test_writing_over_a_link(build: Build) -> None:
    refused(build((member("a", tarfile.SYMTYPE, target="b"), b""), file("a")), "comes twice")


@pytest.mark.parametrize("target", ["../../etc/passwd", "/etc/passwd", "missing", "folder", "sym"])
def test_hard_links_to_anything_but_a_file_before_them(build: Build, target: str) -> None:
    members = [
        (member("folder", tarfile.DIRTYPE), b""),
        (member("sym", tarfile.SYMTYPE, target="folder"), b""),
        (member("link", tarfile.LNKTYPE, target=target), b""),
    ]
    refused(build(*members), "hard link|leaves the folder|absolute")


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"Z"])
def test_members_that_are_no_file_folder_or_link(build: Build, kind: bytes) -> None:
    refused(build((member("x", kind), b"")), "'x': is a (device|fifo|member of unknown type)")


@pytest.mark.parametrize("second", ["x", "./x", "y/../x", "a//b"])
def test_a_name_that_comes_twice(build: Build, second: str) -> None:
    refused(build(file("x"), file("a/b"), file(second)), "comes twice|leaves the folder")


def test_a_folder_may_come_twice(build: Build, tmp_path: Path) -> None:
    extract(
        build((member("a", tarfile.DIRTYPE), b""), file("a/b"), (member("a/", tarfile.DIRTYPE), b"")), tmp_path / "d"
    )
    assert (tmp_path / "d/a/b").exists()


def test_a_huge_declared_size_is_refused_before_it_is_read(build: Build) -> None:
    path = build(file("x"))
    data = bytearray(path.read_bytes())
    data[124:136] = b"\x80" + (1 << 60).to_bytes(11, "big")
    data[148:156] = b"%06o\0 " % (sum(data[:148]) + sum(data[156:512]) + 8 * 32)
    path.write_bytes(data)
    refused(path, "'x': unpacks to more than")


def test_a_huge_header_is_refused_before_it_is_read(build: Build) -> None:
    path = build((member("x", tarfile.XHDTYPE, size=1 << 30), b""))
    refused(path, "a header of 1,073,741,824 bytes")


def test_too_many_members(build: Build) -> None:
    refused(
        build(*(file(str(number)) for number in range(11))), "more than 10 members", limits=ExtractLimits(members=10)
    )


@pytest.mark.parametrize("form", ["gz", "xz", "zst"])
def test_bombs_in_a_compressed_tar(tmp_path: Path, form: str) -> None:
    data = tar_bytes(file("zeros", bytes(80 << 20)))
    archive = tmp_path / "bomb"
    archive.write_bytes(PACKERS[f"tar.{form}"](data))
    refused(archive, "unpacks to more than")


@pytest.mark.parametrize(("key", "value"), [("size", "-5"), ("mtime", "inf"), ("mtime", "nan")])
def test_nonsense_in_a_pax_header(build: Build, key: str, value: str) -> None:
    info = member("x")
    info.pax_headers = {key: value}
    refused(build((info, b"")), "not a sound archive|negative")


def test_a_bomb_in_a_zip(tmp_path: Path) -> None:
    archive = tmp_path / "bomb.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("zeros", bytes(80 << 20))
    refused(archive, "'zeros': unpacks to more than")


def test_a_zip_that_lies_about_its_size(tmp_path: Path) -> None:
    archive = tmp_path / "liar.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("zeros", bytes(1 << 20))
    data = archive.read_bytes().replace(struct.pack("<I", 1 << 20), struct.pack("<I", 10))
    archive.write_bytes(data)
    refused(archive, "not a sound archive|ends early")


@pytest.mark.parametrize("form", PACKERS)
def test_a_cut_archive(tmp_path: Path, form: str) -> None:
    data = PACKERS[form](tar_bytes(file("x", os.urandom(50_000))))
    archive = tmp_path / "cut"
    archive.write_bytes(data[: len(data) * 2 // 3])
    refused(archive, "not a sound archive|ends early")


def test_a_cut_between_two_members_is_noticed(tmp_path: Path) -> None:
    data = tar_bytes(file("x", b"1" * 512), file("y", b"2" * 512))
    archive = tmp_path / "cut"
    archive.write_bytes(data[:1024])
    refused(archive, "cut short")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\3\4", b"\x1f\x8b", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd\0"])
def test_what_is_no_archive(tmp_path: Path, content: bytes) -> None:
    archive = tmp_path / "thing"
    archive.write_bytes(content)
    refused(archive, "not a sound archive")


def test_names_that_are_not_utf8_keep_their_bytes(build: Build, tmp_path: Path) -> None:
    extract(build(file("caf\udce9")), tmp_path / "dest")
    assert os.listdir(os.fsencode(tmp_path / "dest")) == [b"caf\xe9"]


NAMES = st.lists(st.sampled_from(["a", "b", "..", ".", "", "c"]), min_size=1, max_size=4).map("/".join)
KINDS = st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(NAMES, KINDS, NAMES), max_size=8))
def test_nothing_ever_leaves_the_folder(
    tmp_path_factory: pytest.TempPathFactory, members: list[tuple[str, bytes, str]]
) -> None:
    base = tmp_path_factory.mktemp("any")
    archive = base / "a.tar"
    archive.write_bytes(tar_bytes(*((member(name or "x", kind, target=target), b"") for name, kind, target in members)))
    try:
        extract(archive, base / "dest")
    except BuilderError:
        assert os.listdir(base) == ["a.tar"]
        return
    assert sorted(os.listdir(base)) == ["a.tar", "dest"]
    for path in (base / "dest").rglob("*"):
        assert path.resolve().is_relative_to(base / "dest")
