"""Who uses the store now: one folder of tmp/ for each running builder, alive as long as its lock is held.

flock(2) locks die with their process, so a killed builder never blocks anybody.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from builder.interrupts import shielded
from builder.store.files import remove_tree

_PREFIX = "session-"
_REMOVED = "removed-"


@dataclass(frozen=True)
class Session:
    """A running builder's own folder, for whatever it makes before it has its final name."""

    folder: Path
    fd: int  # holds the lock
    pid: int

    def end(self) -> None:
        """Remove the folder and let go of the lock, whatever signal comes; does nothing in a forked child."""
        if os.getpid() == self.pid:
            with shielded():
                with suppress(OSError):
                    remove_tree(self.folder)
                os.close(self.fd)


@contextmanager
def locked(root: Path, how: int) -> Iterator[None]:
    """Hold the store's lock for the block.

    Shared (`fcntl.LOCK_SH`) to mark something as used or to begin a session, exclusive to decide what nobody uses
    and take it away. Never held for long. Raises BlockingIOError when `how` has LOCK_NB and another holds it.
    """
    fd = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, how)
        yield
    finally:
        os.close(fd)


def begin(root: Path) -> Session:
    """A new session in the store at `root`, after removing what dead ones left behind. Raises OSError."""
    with locked(root, fcntl.LOCK_SH):
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root / "tmp"))
        fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(fd, fcntl.LOCK_EX)
    session = Session(folder, fd, os.getpid())
    remove_dead(root)
    return session


def remove_dead(root: Path) -> None:
    """Remove what builders left behind that do not run any more; what needs other rights is left."""
    dead: list[tuple[Path, int]] = []
    with suppress(BlockingIOError), locked(root, fcntl.LOCK_EX | fcntl.LOCK_NB):
        dead = [(folder, fd) for folder in _folders(root, _PREFIX) if (fd := _take(folder)) is not None]
    for folder, fd in dead:
        with suppress(OSError):
            remove_tree(folder)
        os.close(fd)
    for folder in _folders(root, _REMOVED):
        with suppress(OSError):
            remove_tree(folder)


def take_away(root: Path, folder: Path) -> Path | None:
    """Free the name of a folder of the store at `root`; where it is now, to be removed; None when it was gone.

    Makes no new folder, so that it works on a full disk. Raises OSError.
    """
    aside = root / "tmp" / f"{_REMOVED}{os.getpid()}-{time.monotonic_ns()}"
    try:
        os.rename(folder, aside)
    except FileNotFoundError:
        return None
    return aside


def oldest_start(root: Path) -> int | None:
    """When the oldest live session began, nanoseconds since 1970; None when there is none.

    To be called with the store's lock held exclusively.
    """
    starts = []
    for folder in _folders(root, _PREFIX):
        fd = _take(folder)
        if fd is not None:
            os.close(fd)
            continue
        with suppress(FileNotFoundError):
            starts.append(os.stat(folder / "lock").st_mtime_ns)
    return min(starts, default=None)


def _folders(root: Path, prefix: str) -> list[Path]:
    return [root / "tmp" / name for name in os.listdir(root / "tmp") if name.startswith(prefix)]


def _take(folder: Path) -> int | None:
    """The lock of a dead session, None when it lives, is gone, or is another user's."""
    try:
        fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd
