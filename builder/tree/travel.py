"""A tree as its index and one stream of bytes: how a layer goes from one store to another."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterable, Iterator
from typing import IO, cast

from builder.errors import BuilderError
from builder.tree import holes
from builder.tree.entry import Entry
from builder.tree.index import Index, order

_CHUNK = 64 * holes.BLOCK


def contents(index: Index, root: str | os.PathLike[str]) -> Iterator[bytes]:
    """The bytes of the files of the tree at `root`, one file after the other in the order of `index`, in pieces.

    Raises BuilderError naming a file that cannot be read, or has another size than the index says.
    """
    for entry in index.entries:
        if entry.type != "file":
            continue
        place = os.path.join(root, entry.path)
        left = entry.size
        try:
            with open(place, "rb", buffering=0, opener=_no_link) as file:
                while piece := file.read(_CHUNK):
                    left -= len(piece)
                    yield piece
        except OSError as error:
            raise BuilderError(error.strerror or str(error), where=place) from error
        if left:
            raise BuilderError("has another size than when it was captured", where=place)


def restore(index: Index, root: str | os.PathLike[str], pieces: Iterable[bytes]) -> None:
    """Make in the empty folder `root`, and nowhere else, the tree that `index` describes; `pieces` as of `contents`.

    The index may come from anywhere: every name is made in a folder that this call made. What came out is for the
    caller to compare (`scan`). Raises BuilderError naming the member that cannot be made, whose bytes are missing,
    or that no index of `scan` has.
    """
    with cast("IO[bytes]", io.BufferedReader(_Pieces(pieces), _CHUNK)) as stream:
        made: dict[str, str] = {}
        last = None
        for entry in index.entries:
            try:
                _check(entry, made, last)
                _make(os.path.join(root, entry.path), entry, root, made, stream)
            except OSError as error:
                raise BuilderError(f"{entry.path!a}: {error.strerror or error}") from error
            except (TypeError, ValueError, AttributeError, OverflowError) as error:
                raise BuilderError(f"{entry.path!a}: no member of a layer ({error})") from error
            made[entry.path] = entry.type
            last = entry.path
        if stream.read(1):
            raise BuilderError("more bytes than its files have")
    for entry in reversed(index.entries):
        if entry.type == "dir":
            try:
                _finish(os.path.join(root, entry.path), entry)
            except (OSError, TypeError, ValueError, OverflowError) as error:
                raise BuilderError(f"{entry.path!a}: {error}") from error


class _Pieces(io.RawIOBase):
    """An iterable of bytes as a file."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._left = memoryview(piece)
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def _check(entry: Entry, made: dict[str, str], last: str | None) -> None:
    """That the member follows on `last` and lies in a folder that was made. Raises ValueError."""
    if last is None:
        if entry.path or entry.type != "dir":
            raise ValueError("not the root")
        return
    folder, _, name = entry.path.rpartition("/")
    if name in ("", ".", "..") or "\0" in name or made.get(folder) != "dir":
        raise ValueError("not in a folder of the layer")
    if order(entry.path) <= order(last):
        raise ValueError("out of order")


def _make(place: str, entry: Entry, root: str | os.PathLike[str], made: dict[str, str], stream: IO[bytes]) -> None:
    if entry.type == "dir":
        if entry.path:
            os.mkdir(place, 0o700)
        return
    if entry.type == "hardlink":
        if made.get(entry.target) != "file":
            raise ValueError("a name of no file before it")
        os.link(os.path.join(root, entry.target), place, follow_symlinks=False)
        return
    if entry.type == "whiteout":
        os.mknod(place, stat.S_IFCHR, os.makedev(0, 0))
        return
    if entry.type == "file":
        _write(place, entry, stream)
    elif entry.type == "link":
        os.symlink(entry.target, place)
    elif entry.type == "fifo":
        os.mkfifo(place, 0o600)
    else:
        raise ValueError(f"of type {entry.type!a}")
    _finish(place, entry)


def _write(place: str, entry: Entry, stream: IO[bytes]) -> None:
    with open(place, "xb", buffering=0) as file:
        for start in range(0, entry.size, _CHUNK):
            length = min(_CHUNK, entry.size - start)
            data = stream.read(length)
            if len(data) != length:
                raise ValueError("its bytes are missing")
            zeros = holes.zero_blocks(data, length) if entry.sparse else []
            for offset, count in holes.data_ranges(zeros, length):
                _write_at(file.fileno(), memoryview(data)[offset : offset + count], start + offset)
        file.truncate(entry.size)


def _write_at(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count


def _finish(place: str, entry: Entry) -> None:
    """Give a member its attributes: the owner first, which takes set-id bits and capabilities away (chown(2))."""
    os.chown(place, entry.uid, entry.gid, follow_symlinks=False)
    if entry.type != "link":
        os.chmod(place, entry.mode)
        for name, value in entry.xattrs:
            os.setxattr(place, name, value, follow_symlinks=False)
        if entry.opaque:
            os.setxattr(place, "user.overlay.opaque", b"y", follow_symlinks=False)
    os.utime(place, (entry.mtime, entry.mtime), follow_symlinks=False)
