"""Small operations on files that either happen whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from builder.errors import BuilderError

CHUNK = 1 << 20
"""Bytes read or written at a time."""


@contextmanager
def guarded(path: Path) -> Iterator[None]:
    """Turn an OSError of the block, told by another package or not, into one that names path and way out."""
    try:
        yield
    except OSError as error:
        raise failure(error, path) from error
    except BuilderError as error:
        if error.hint is None and isinstance(error.__cause__, OSError):
            raise failure(error.__cause__, path) from error
        raise


def failure(error: OSError, path: Path) -> BuilderError:
    """What to tell about `error`, which happened at `path` unless it names another place itself."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "free some space, run `builder store gc`, or set BUILDER_STORE to a larger disk"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        hint = "set BUILDER_STORE to a folder of yours"
    else:
        hint = None
    return BuilderError(error.strerror or str(error), where=error.filename2 or error.filename or path, hint=hint)


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, 64 hex digits. Raises OSError."""
    digest = hashlib.sha256()
    with open_unmarked(path) as file:
        for chunk in chunks(file.fileno()):
            digest.update(chunk)
    return digest.hexdigest()


def open_unmarked(path: Path) -> IO[bytes]:
    """Open a file to read it, which does not count as a use (open(2), O_NOATIME). Raises OSError."""
    try:
        return open(path, "rb", buffering=0, opener=lambda name, flags: os.open(name, flags | os.O_NOATIME))
    except PermissionError:  # for its owner only
        return open(path, "rb", buffering=0)


def chunks(fd: int) -> Iterator[bytes]:
    """What is left to read of an open file, in pieces. Raises OSError."""
    while chunk := os.read(fd, CHUNK):
        yield chunk


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write all of `data` (write(2) may take less at a time). Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def write_durably(path: Path, parts: Iterable[bytes]) -> str:
    """Make the file `path`, which must not exist, on the disk itself; the sha256 of its bytes. Raises OSError."""
    digest = hashlib.sha256()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        for part in parts:
            digest.update(part)
            write_all(fd, part)
        os.fsync(fd)
    finally:
        os.close(fd)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Bring a file's bytes, or a folder's names, to the disk, so that they survive a power cut. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def drop_acl(folder: Path) -> None:
    """Take the access control lists (acl(5)) off an empty folder: an inherited one widens what is made in it."""
    for name in os.listxattr(folder):
        if name.startswith("system.posix_acl_"):
            os.removexattr(folder, name)


def remove_tree(path: Path) -> None:
    """Remove a folder with all in it, folders without write permission included. Raises OSError.

    Another process may be removing the same one: what is gone already is fine.
    """
    while path.exists():
        with suppress(FileNotFoundError):
            _remove_tree(path)


def _remove_tree(path: Path) -> None:
    try:
        shutil.rmtree(path)
    except PermissionError:
        os.chmod(path, 0o700)
        for folder, names, _ in os.walk(path):
            for name in names:
                inner = os.path.join(folder, name)
                if not os.path.islink(inner):
                    os.chmod(inner, 0o700)
        shutil.rmtree(path)
