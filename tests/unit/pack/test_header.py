"""Headers, read back by two programs that others wrote."""

import io
import subprocess
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.pack.header import header, padding
from builder.tree import Entry

END = bytes(1024)
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=80)
PATHS = st.lists(NAMES.filter(lambda name: name not in (".", "..")), min_size=1, max_size=6).map("/".join)


def read(data: bytes) -> tarfile.TarInfo:
    with tarfile.open(fileobj=io.BytesIO(data + END), errors="surrogateescape") as tar:
        (info,) = tar.getmembers()
        return info


@settings(max_examples=200, deadline=None)
@given(
    PATHS,
    st.sampled_from(["file", "dir", "fifo"]),
    st.integers(0, 0o7777),
    st.integers(0, 2**32 - 2),
    st.integers(0, 2**32 - 2),
    st.integers(0, 8**11 - 1),
)
def test_what_is_written_is_read(path: str, kind: str, mode: int, uid: int, gid: int, mtime: int) -> None:
    info = read(header(Entry(path, kind, mode, uid, gid, mtime=mtime)))
    assert info.name == f"./{path}"
    assert (info.mode, info.uid, info.gid, info.mtime) == (mode, uid, gid, mtime)
    assert (info.uname, info.gname) == ("", "")
    assert {"file": info.isfile(), "dir": info.isdir(), "fifo": info.isfifo()}[kind]


@pytest.mark.parametrize("length", [1, 90, 98, 99, 100, 101, 4000])
def test_names_and_targets_of_any_length(length: int) -> None:
    info = read(header(Entry("n" * length, "link", 0o777, target="t" * length)))
    assert (info.name, info.linkname) == ("./" + "n" * length, "t" * length)


def test_only_what_ustar_cannot_say_gets_a_pax_header() -> None:
    assert len(header(Entry("é" * 49, "file", 0o644, 2097151, 2097151))) == 512
    assert len(header(Entry("a", "file", 0o644, 2097152, 0))) == 512 * 3


def test_a_hard_link_names_its_file_as_the_tar_does() -> None:
    info = read(header(Entry("b", "hardlink", 0o644, target="a")))
    assert info.islnk()
    assert info.linkname == "./a"


def test_a_file_above_8_gib_has_its_size() -> None:
    data = header(Entry("big", "file", 0o644, size=9 << 30))
    assert tarfile.TarInfo.frombuf(data[1024:1536], "utf-8", "strict").size == 0
    assert b"size=9663676416\n" in data


def test_the_length_of_a_record_counts_itself_at_every_width() -> None:
    for length in range(1, 1100):
        info = read(header(Entry("a", "file", 0o644, xattrs=(("user.x", b"v" * length),))))
        assert info.pax_headers["SCHILY.xattr.user.x"] == "v" * length


def test_a_name_that_is_not_utf8_keeps_its_bytes() -> None:
    data = header(Entry("caf\udce9" * 30, "file", 0o644))
    listed = subprocess.run(
        ["tar", "-t", "--quoting-style=literal"], input=data + END, capture_output=True, check=True, env={"LC_ALL": "C"}
    )
    assert listed.stdout == b"./" + b"caf\xe9" * 30 + b"\n"
    assert listed.stderr == b""


def test_a_sparse_file_is_as_long_as_it_was() -> None:
    size = 5_000_000
    ranges = [(0, 3), (2_000_000, 16384), (size, 0)]
    body = b"abc" + b"d" * 16384
    data = header(Entry("f" * 150, "file", 0o644, size=size, sparse=True), ranges) + body + padding(len(body)) + END
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        (info,) = tar.getmembers()
        content = tar.extractfile(info)
        assert content is not None
        read_back = content.read()
    assert (info.name, info.size) == ("./" + "f" * 150, size)
    assert len(read_back) == size
    assert (read_back[:4], read_back[2_000_000:2_000_002]) == (b"abc\0", b"dd")
