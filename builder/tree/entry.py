"""One member of a file tree, and the list of them that describes a whole layer."""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """One member. Paths are relative with '/' between parts, '' for the root, surrogateescape for odd bytes."""

    path: str
    type: str  # dir | file | link (symbolic) | whiteout | fifo | hardlink
    mode: int = 0  # permission bits only, 0o7777
    uid: int = 0
    gid: int = 0
    size: int = 0  # of a file, in bytes
    mtime: int = 0  # whole seconds
    target: str = ""  # of a symbolic link; for a hardlink the path of the first name (sorted order) of the same file
    sha256: str = ""  # of a file's bytes (holes count as zeros)
    xattrs: tuple[tuple[str, bytes], ...] = ()  # sorted; security.capability and user.* only, never overlay's
    opaque: bool = False  # a directory that hides what is below it
    sparse: bool = False  # a file with at least one hole
