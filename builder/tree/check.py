"""Whether a tree is still what its index says."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from builder.progress import Progress
from builder.tree.entry import Entry
from builder.tree.index import STAT, Index
from builder.tree.walk import scan

_TYPES = {
    "dir": stat.S_IFDIR,
    "file": stat.S_IFREG,
    "hardlink": stat.S_IFREG,
    "link": stat.S_IFLNK,
    "fifo": stat.S_IFIFO,
    "whiteout": stat.S_IFCHR,
}


def changed(index: Index, root: Path) -> list[str]:
    """Paths of members whose stat data differs from what `scan` saw (a folder's, when a member was added to it).

    Reads no file; compares size, mtime, ctime, inode, type, mode and owner. The root's ctime is not looked at: a
    layer that is moved to its place keeps everything else.
    """
    return [
        entry.path
        for entry, known in zip(index.entries, STAT.iter_unpack(index.stats), strict=True)
        if not _same(f"{root}/{entry.path}", entry, known)
    ]


def _same(full: str, entry: Entry, known: tuple[int, ...]) -> bool:
    try:
        now = os.lstat(full)
    except OSError:
        return False
    owned = now.st_mode == _TYPES[entry.type] | entry.mode and now.st_uid == entry.uid and now.st_gid == entry.gid
    ctime = now.st_ctime_ns if entry.path else known[2]
    return (owned or entry.type == "whiteout") and known == (now.st_size, now.st_mtime_ns, ctime, now.st_ino)


def verify(index: Index, root: Path, *, jobs: int | None = None, progress: Progress | None = None) -> list[str]:
    """Paths of members that differ in any byte or attribute from `index`, are missing, or were added; sorted.

    Raises BuilderError when the tree cannot be read.
    """
    known = {entry.path: entry for entry in index.entries}
    found = {entry.path: entry for entry in scan(root, jobs=jobs, progress=progress).entries}
    return sorted(path for path in known.keys() | found.keys() if known.get(path) != found.get(path))
