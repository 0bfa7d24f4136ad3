"""Walks over a tree on disk: make its index, and make it fit to be indexed."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from builder.errors import BuilderError
from builder.progress import Progress, Silent, Task
from builder.tree import holes, overlay
from builder.tree.entry import Entry
from builder.tree.index import STAT, Index, order

_BUFFER = 1 << 20
_BATCH_FILES = 64
_NOT_CAPTURED = ("redirect", "metacopy")


def scan(root: Path, *, jobs: int | None = None, progress: Progress | None = None) -> Index:
    """The index of the tree at `root`, its files hashed by `jobs` threads (None: one a CPU).

    Whiteouts and opaque folders in overlayfs's form are recognised. Sockets and device nodes are left out, and of
    extended attributes only security.capability and user.* are kept. A file of several names is a file at the
    first of them and a hardlink at the others.
    Raises BuilderError naming what cannot be read, or was renamed or copied up in a form that stands for data of a
    lower layer (overlayfs's redirect_dir and metacopy, which are never switched on).
    """
    try:
        entries, stats = _members(os.fspath(root))
        files = [number for number, entry in enumerate(entries) if entry.type == "file"]
        files.sort(key=lambda number: -entries[number].size)
        with (progress or Silent()).task(f"hash {root.name}", sum(entry.size for entry in entries)) as task:
            _hash(os.fspath(root), entries, files, jobs or os.cpu_count() or 1, task)
    except OSError as error:
        raise BuilderError(error.strerror or str(error), where=error.filename or root) from error
    return Index.of(entries, stats)


def _members(root: str) -> tuple[list[Entry], bytes]:
    found = sorted(_walk(root), key=lambda member: order(member[0]))
    entries: list[Entry] = []
    stats = bytearray()
    first_names: dict[tuple[int, int], int] = {}
    for path, status in found:
        entry = _describe(root, path, status)
        if entry is None:
            continue
        if entry.type == "file" and status.st_nlink > 1:
            number = first_names.setdefault((status.st_dev, status.st_ino), len(entries))
            if number < len(entries):
                entry = entry._replace(type="hardlink", target=entries[number].path, size=0)
        entries.append(entry)
        stats += STAT.pack(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    return entries, bytes(stats)


def _walk(root: str) -> Iterator[tuple[str, os.stat_result]]:
    yield "", os.lstat(root)
    folders = [""]
    while folders:
        folder = folders.pop()
        with os.scandir(os.path.join(root, folder)) as members:
            for member in members:
                path = f"{folder}/{member.name}" if folder else member.name
                yield path, member.stat(follow_symlinks=False)
                if member.is_dir(follow_symlinks=False):
                    folders.append(path)


def _describe(root: str, path: str, status: os.stat_result) -> Entry | None:
    """The entry of one member, without its hash; None when it is never part of a layer."""
    full = os.path.join(root, path)
    mode = status.st_mode
    mtime = status.st_mtime_ns // 1_000_000_000
    if overlay.is_whiteout(status):
        return Entry(path, "whiteout")
    if stat.S_ISLNK(mode):
        return Entry(path, "link", 0o777, status.st_uid, status.st_gid, mtime=mtime, target=os.readlink(full))
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFIFO: "fifo"}
    kind = kinds.get(stat.S_IFMT(mode))
    if kind is None:
        return None
    xattrs, opaque = _xattrs(full)
    return Entry(
        path,
        kind,
        stat.S_IMODE(mode),
        status.st_uid,
        status.st_gid,
        size=status.st_size if kind == "file" else 0,
        mtime=mtime,
        xattrs=xattrs,
        opaque=opaque,
    )


def _xattrs(full: str) -> tuple[tuple[tuple[str, bytes], ...], bool]:
    """The attributes that a layer keeps, and whether overlayfs marks this folder as opaque."""
    names = os.listxattr(full, follow_symlinks=False)
    if not names:
        return (), False
    for name in names:
        if name.startswith(overlay.ATTRIBUTES) and name.endswith(_NOT_CAPTURED):
            raise BuilderError(f"{name}: its data is in another layer", where=full, hint="mount without that option")
    kept = sorted(name for name in names if _is_kept(name))
    pairs = tuple((name, os.getxattr(full, name, follow_symlinks=False)) for name in kept)
    return pairs, overlay.is_opaque(full)


def _is_kept(name: str) -> bool:
    return name == "security.capability" or (name.startswith("user.") and not name.startswith(overlay.ATTRIBUTES))


def _hash(root: str, entries: list[Entry], files: list[int], jobs: int, task: Task) -> None:
    def work(batch: list[int]) -> None:
        buffer = bytearray(_BUFFER)
        for number in batch:
            entry = entries[number]
            digest, size, zeros = _digest(os.path.join(root, entry.path), buffer, task)
            if size != entry.size:
                raise BuilderError("changed while it was read", where=os.path.join(root, entry.path))
            entries[number] = entry._replace(sha256=digest, sparse=holes.are_worth(zeros, size))

    pool = ThreadPoolExecutor(jobs)
    try:
        for _ in pool.map(work, _batches(entries, files)):
            pass
    finally:
        pool.shutdown(cancel_futures=True)


def _batches(entries: list[Entry], files: list[int]) -> Iterator[list[int]]:
    """Files, largest first, in groups of about the same work."""
    batch: list[int] = []
    size = 0
    for number in files:
        batch.append(number)
        size += entries[number].size
        if len(batch) == _BATCH_FILES or size >= 8 * _BUFFER:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _digest(full: str, buffer: bytearray, task: Task) -> tuple[str, int, int]:
    """The sha256, the size and the bytes in holes of one file."""
    digest = hashlib.sha256()
    size = zeros = 0
    view = memoryview(buffer)
    with open(full, "rb") as file:
        while count := file.readinto(view):
            digest.update(view[:count])
            size += count
            zeros += holes.BLOCK * len(holes.zero_blocks(buffer, count))
            task.advance(count)
    return digest.hexdigest(), size, zeros


def normalise(root: Path, epoch: int, windows: Sequence[tuple[int, int]], lower: Sequence[Path] = ()) -> None:
    """Take out of the tree at `root` what depends on when and where it was made.

    A member whose mtime lies in one of `windows` (the run of the stage by each clock that may tell it: first and last
    nanosecond since 1970) or after `epoch` (seconds) gets `epoch`; an older mtime loses its fraction of a second.
    Sockets are removed, and so are extended attributes other than security.capability, user.* and overlayfs's own.
    overlayfs marks new folders as opaque: where none of the trees `lower` has the folder, the mark goes.
    Raises BuilderError naming the member that cannot be changed.
    """
    try:
        folders = []
        top = os.fspath(root)
        for path, status in _walk(top):
            full = os.path.join(top, path)
            if stat.S_ISSOCK(status.st_mode):
                os.unlink(full)
            elif stat.S_ISDIR(status.st_mode):
                folders.append((path, status))
            elif not stat.S_ISCHR(status.st_mode):
                _settle(full, status, epoch, windows)
        for path, status in reversed(folders):
            full = os.path.join(top, path)
            if overlay.is_opaque(full) and not any(_has(os.fspath(below), path) for below in lower):
                _drop_opaque(full)
            _settle(full, status, epoch, windows)
    except OSError as error:
        raise BuilderError(error.strerror or str(error), where=error.filename or root) from error


def _has(root: str, path: str) -> bool:
    """Whether the tree at `root` has a member at `path`, reached through folders and no link."""
    parts = path.split("/")
    try:
        for count in range(1, len(parts)):
            if not stat.S_ISDIR(os.lstat(os.path.join(root, *parts[:count])).st_mode):
                return False
        os.lstat(os.path.join(root, path))
    except FileNotFoundError:
        return False
    return True


def _settle(full: str, status: os.stat_result, epoch: int, windows: Sequence[tuple[int, int]]) -> None:
    for name in os.listxattr(full, follow_symlinks=False):
        if not _is_kept(name) and not name.startswith(overlay.ATTRIBUTES):
            _drop_xattr(full, name)
    mtime = status.st_mtime_ns
    recent = any(first <= mtime <= last for first, last in windows) or mtime > epoch * 1_000_000_000
    wanted = epoch if recent else max(0, mtime // 1_000_000_000)
    if mtime != wanted * 1_000_000_000 or stat.S_ISDIR(status.st_mode):
        os.utime(full, (wanted, wanted), follow_symlinks=False)


def _drop_opaque(folder: str) -> None:
    for name in os.listxattr(folder, follow_symlinks=False):
        if name.startswith(overlay.ATTRIBUTES) and name.endswith("opaque"):
            os.removexattr(folder, name, follow_symlinks=False)


def _drop_xattr(full: str, name: str) -> None:
    """Remove one attribute; those of a security module that only the host may touch stay and are never captured."""
    try:
        os.removexattr(full, name, follow_symlinks=False)
    except PermissionError:
        if not name.startswith(("security.", "trusted.", "system.nfs4")):
            raise
