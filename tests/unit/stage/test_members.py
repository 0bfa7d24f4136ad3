"""The tar that lays files over a template: nothing of the machine gets in."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.errors import BuilderError, UsageError
from builder.stage.members import Members, wrong_path

EPOCH = 1000


def listed(path: Path) -> list[tuple[str, str, int, int, int]]:
    with tarfile.open(path) as tar:
        return [(m.name, m.type.decode(), m.mode, m.mtime, m.uid) for m in tar]


def test_modes_come_from_the_x_bit_alone_and_times_from_the_epoch(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True, mode=0o700)
    for name, mode in (("b", 0o600), ("a", 0o4711)):
        (tree / "sub" / name).write_text(name)
        (tree / "sub" / name).chmod(mode)
    (tree / "link").symlink_to("/nowhere")
    with Members(tmp_path / "tar", EPOCH) as members:
        members.tree(tree, "/opt")
    assert listed(tmp_path / "tar") == [
        ("opt", "5", 0o755, EPOCH, 0),
        ("opt/link", "2", 0o777, EPOCH, 0),
        ("opt/sub", "5", 0o755, EPOCH, 0),
        ("opt/sub/a", "0", 0o755, EPOCH, 0),
        ("opt/sub/b", "0", 0o644, EPOCH, 0),
    ]


def test_an_archives_times_can_be_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    os.utime(tmp_path / "file", (5, 5))
    with Members(tmp_path / "tar", EPOCH) as members:
        members.tree(tmp_path / "file", "/srv/file", keep_times=True)
    assert listed(tmp_path / "tar")[-1] == ("srv/file", "0", 0o644, 5, 0)


def test_the_same_members_make_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with Members(tmp_path / name, EPOCH) as members:
            members.file("/etc/x", b"x")
            members.link("/etc/y", "x")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        ("etc/x", "must be an absolute path"),
        ("/etc/../../x", "must have no '.' or '..'"),
        ("/tmp/x", "lies in /tmp, which is no part of a template"),
        ("/proc", "lies in /proc, which is no part of a template"),
        ("/", "is the root of the template"),
    ],
)
def test_places_that_are_none_are_refused(tmp_path: Path, path: str, wrong: str) -> None:
    with Members(tmp_path / "tar", EPOCH) as members, pytest.raises(UsageError, match=wrong):
        members.link(path, "x")


def test_a_socket_is_refused_by_name(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with Members(tmp_path / "tar", EPOCH) as members, pytest.raises(BuilderError, match="fifo: neither a file"):
        members.tree(tmp_path / "fifo", "/fifo")


@given(st.text(alphabet="/.abcrunpo\0", max_size=12))
def test_a_right_path_stays_in_the_template(path: str) -> None:
    if wrong_path(path) is None:
        assert os.path.normpath(f"/root/{path}").startswith("/root")
        assert path.startswith("/")
        assert path.strip("/").split("/")[0] not in ("run", "proc")
