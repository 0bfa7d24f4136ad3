"""A new template's file holds what was put into it, past the page cache or not."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from builder.pack import newfile
from builder.pack.earlier import Earlier, Stat, opened
from builder.pack.newfile import NewFile
from builder.pack.resumable import Sum

SIZES = (4096, 8192, 1 << 20, 4096, 3 << 20, 12288, 777)
"""Of the frames: whole pages, and the last one."""


@pytest.fixture(params=["/var/tmp", "/dev/shm"])
def folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    """On a disk, and on a file system that knows no O_DIRECT on older kernels."""
    with tempfile.TemporaryDirectory(dir=request.param) as made:
        yield Path(made)


def frames() -> list[bytes]:
    return [random.Random(number).randbytes(size) for number, size in enumerate(SIZES)]


def written(path: Path) -> bytes:
    """What a file of the frames holds afterwards."""
    with path.open("xb", buffering=0) as file:
        out = NewFile(file.fileno(), None)
        for frame in frames():
            out.add(frame)
        out.finish()
    return path.read_bytes()


@pytest.mark.parametrize("block", [4096, 1 << 20, 8 << 20])
def test_frames_come_out_as_they_were_put_in(folder: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(newfile, "_BLOCK", block)
    assert written(folder / "new") == b"".join(frames())


def is_direct(descriptor: int) -> bool:
    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)


def takes_direct(folder: Path) -> bool:
    with tempfile.TemporaryFile(dir=folder) as file:
        with suppress(OSError):
            fcntl.fcntl(file, fcntl.F_SETFL, os.O_DIRECT)
        return is_direct(file.fileno())


@pytest.mark.parametrize("fault", ["none", "short", "refused"])
def test_what_the_disk_takes_only_in_part_or_through_the_cache_is_gone_on_with(
    folder: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """write(2) may take less; and file systems exist that take O_DIRECT when it is set and not when it is used."""
    monkeypatch.setattr(newfile, "_BLOCK", 1 << 20)
    direct: list[bool] = []
    real, sync = os.write, os.fsync

    def write(descriptor: int, data: Any) -> int:
        direct.append(is_direct(descriptor))
        if direct[-1] and fault == "refused":
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(descriptor, data[:100_001] if fault == "short" else data)

    synced: list[int] = []
    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size) or sync(descriptor))
    assert written(folder / "new") == b"".join(frames())
    assert synced == [sum(SIZES)]
    assert direct[0] == takes_direct(folder)
    assert not direct[-1]


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch, fault: int) -> None:
    def write(descriptor: int, data: Any) -> int:
        raise OSError(fault, os.strerror(fault))

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError, match=os.strerror(fault)):
        written(folder / "new")


@pytest.mark.parametrize("shares", [True, False])
def test_parts_of_an_earlier_template_between_new_frames(
    folder: Path, monkeypatch: pytest.MonkeyPatch, shares: bool
) -> None:
    if not shares:

        def refuse(*arguments: int) -> int:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

        monkeypatch.setattr(os, "copy_file_range", refuse)
    old = random.Random(9).randbytes(6 << 20)
    (folder / "old").write_bytes(old)
    total = Sum()
    total.update(old)
    earlier = Earlier(folder / "old", Stat.of((folder / "old").stat()), total.hexdigest(), tuple(total.states), ())
    one, two = frames()[:2]
    with opened(earlier) as reading, (folder / "new").open("xb", buffering=0) as file:
        out = NewFile(file.fileno(), reading)
        out.add(one)
        out.keep(4096, 5 << 20)
        out.add(two)
        out.keep(0, 8192)
        out.add(b"end")
        out.finish()
    kept = old[4096 : 4096 + (5 << 20)]
    assert (folder / "new").read_bytes() == one + kept + two + old[:8192] + b"end"
