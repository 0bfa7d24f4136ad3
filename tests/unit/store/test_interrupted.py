"""A builder that is killed, loses power, or meets a full disk, at each of its writes in turn; the next one is right."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from little import KINDS, Little

from builder.errors import BuilderError
from builder.store import upkeep

WRITES = ("write", "pwrite", "rename", "replace", "mkdir", "fsync", "utime", "chmod", "link", "symlink", "mknod")
"""Functions of `os` that write; files that are opened to be written count too."""

Files = set[tuple[int, int]]
"""Which have all their bytes on the disk: inode and size of each."""


def before_each_write(act: Callable[[], None]) -> None:
    """Have `act` called before whatever this process, a forked one, writes from now on."""

    def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            act()
            return function(*args, **more)

        return call

    def opened(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR):
            act()

    for name in WRITES:
        setattr(os, name, wrapped(getattr(os, name)))
    sys.addaudithook(opened)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def forked(work: Callable[..., None], *arguments: object) -> int:
    """What waitpid(2) tells of a child that does `work`."""
    if (child := os.fork()) == 0:
        try:
            work(*arguments)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1]


@contextmanager
def synced_to(log: Path) -> Iterator[None]:
    """Let fsync(2) write down the file instead of waiting for a disk."""
    kept = os.fsync
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def fsync(fd: int) -> None:
        found = os.fstat(fd)
        posix_write(descriptor, f"{found.st_ino} {found.st_size}\n".encode())

    posix_write = os.write
    os.fsync = fsync
    try:
        yield
    finally:
        os.fsync = kept
        os.close(descriptor)


def regular(little: Little) -> list[Path]:
    found = [path for top in ("store", "artifacts") for path in (little.folder / top).rglob("*")]
    return [path for path in found if path.is_file() and not path.is_symlink()]


def on_disk(little: Little) -> Files:
    return {(path.stat().st_ino, path.stat().st_size) for path in regular(little)}


def lose(little: Little, synced: Files, share: float) -> None:
    """Leave of each file that was not synced no more than this share of its bytes."""
    for path in regular(little):
        now = path.stat()
        if (now.st_ino, now.st_size) not in synced:
            os.truncate(path, int(now.st_size * share))


def from_nothing(folder: Path) -> Little:
    folder.mkdir()
    little = Little(folder)
    _ = little.blobs  # makes the files that are fetched
    return little


def with_another_stage_before(folder: Path) -> Little:
    """Built once, and then changed: a layer is made, and a template replaced by one with frames of it."""
    little = from_nothing(folder)
    complete(little)
    return replace(little, kinds={**KINDS, "above": replace(KINDS["above"], version=2)})


def complete(little: Little) -> tuple[str, list[str]]:
    """What an undisturbed builder makes, and what it leaves."""
    store = little.store
    little.fetch(store)
    made = little.build(store)
    assert upkeep.verify(store) == []
    store.close()
    left = sorted(str(path.relative_to(little.folder)) for path in little.folder.glob("*/tmp/*"))
    return made.sha256, left + sorted(os.listdir(little.artifacts))


@pytest.fixture(params=[from_nothing, with_another_stage_before], ids=["new", "changed"])
def begin(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Little]:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    found: Callable[[Path], Little] = request.param
    return found


def work_until(little: Little, number: int, act: Callable[[], None], log: Path) -> None:
    """Fetch and build in a child; `act` comes before its write `number` and all later ones."""
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        if count >= number:
            act()

    with synced_to(log):
        before_each_write(step)
        try:
            store = little.store
            little.fetch(store)
            little.build(store)
            store.close()
        except BuilderError as error:
            sys.stdout.write(f"{error}\n")
            sys.stdout.flush()
            os._exit(3)
        os._exit(0)


def test_killed_at_each_write(tmp_path: Path, begin: Callable[[Path], Little]) -> None:
    """Of three kills two are power cuts, in which what was not synced is lost, or cut in half."""
    expected = complete(begin(tmp_path / "whole"))
    for number in range(1, 1000):
        little = begin(tmp_path / f"{number}")
        synced = on_disk(little)
        log = tmp_path / f"{number}.log"
        status = forked(work_until, little, number, die, log)
        if share := number % 3:
            synced |= {(int(inode), int(size)) for inode, size in map(str.split, log.read_text().splitlines())}
            lose(little, synced, (share - 1) / 2)
        assert complete(little) == expected, number
        shutil.rmtree(little.folder)
        if not os.WIFSIGNALED(status):
            assert status == 0
            break
    assert number > 40


def test_a_disk_that_is_full_from_any_write_on(
    tmp_path: Path, begin: Callable[[Path], Little], capfd: pytest.CaptureFixture[str]
) -> None:
    expected = complete(begin(tmp_path / "whole"))
    for number in range(1, 1000):
        little = begin(tmp_path / f"{number}")
        status = os.waitstatus_to_exitcode(forked(work_until, little, number, full, tmp_path / "log"))
        said = capfd.readouterr()
        if status == 0:
            break
        assert (status, said.err) == (3, ""), (number, said)
        assert "No space left on device; free some space" in said.out, number
        assert said.out.count("\n") == 1
        assert complete(little) == expected, number
        shutil.rmtree(little.folder)
    assert number > 40
