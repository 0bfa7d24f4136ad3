"""Layers seen as the one tree that overlayfs makes of them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from builder.tree import overlay
from builder.tree.entry import Entry
from builder.tree.index import Index

_MAX_LINKS = 40  # as the kernel's MAXSYMLINKS


def merge(indexes: Sequence[Index]) -> list[list[Entry]]:
    """What of each layer is seen in the tree that the stack makes; layers lowest first, in and out.

    Every path of that tree is in exactly one of the lists, each in its index's order, without whiteouts and opaque
    marks. A folder of several layers is in the list of the topmost one, whose attributes count. When the first
    name of a file is hidden, the first name that is left becomes the file and the others link to it.
    """
    seen: set[str] = set()
    closed: set[str] = set()
    topmost_first = [_relink(index, _visible(index, seen, closed)) for index in reversed(indexes)]
    return topmost_first[::-1]


def clashes(one: Index, other: Index) -> Iterator[str]:
    """Paths that two layers of one stack both have, and where it matters which of the two lies on top.

    A folder of both does not, where it has the same attributes and is opaque in neither; nor do times.
    """
    known = {entry.path: entry for entry in one.entries}
    for entry in other.entries:
        twin = known.get(entry.path)
        if twin is not None and (entry.opaque or twin.opaque or _content(entry) != _content(twin)):
            yield entry.path


def _content(entry: Entry) -> tuple[object, ...]:
    return entry.type, entry.mode, entry.uid, entry.gid, entry.sha256, entry.target, entry.xattrs


def _visible(index: Index, seen: set[str], closed: set[str]) -> list[Entry]:
    """The members of one layer below those that `seen` and `closed` describe; both are brought up to date."""
    shown: list[Entry] = []
    closing: list[str] = []
    hidden = None  # this folder of this layer, with a slash, is hidden with all that is in it
    for entry in index.entries:
        path = entry.path
        if hidden is not None and path.startswith(hidden):
            continue
        if path in closed:
            hidden = f"{path}/"
            continue
        if entry.type != "dir" or (entry.opaque and path):
            closing.append(path)
        if entry.type != "whiteout" and path not in seen:
            seen.add(path)
            shown.append(entry._replace(opaque=False) if entry.opaque else entry)
    closed.update(closing)
    return shown


def _relink(index: Index, shown: list[Entry]) -> list[Entry]:
    """`shown` with each hard link whose file is hidden turned into, or pointed to, the first name left."""
    files = {entry.path for entry in shown if entry.type == "file"}
    orphans = {entry.target for entry in shown if entry.type == "hardlink"} - files
    if not orphans:
        return shown
    hidden = {entry.path: entry for entry in index.entries if entry.path in orphans}
    firsts: dict[str, str] = {}
    result = []
    for entry in shown:
        if entry.type != "hardlink" or entry.target not in orphans:
            result.append(entry)
        elif entry.target in firsts:
            result.append(entry._replace(target=firsts[entry.target]))
        else:
            firsts[entry.target] = entry.path
            result.append(hidden[entry.target]._replace(path=entry.path))
    return result


def resolve(trees: Sequence[Path], path: str) -> Path | None:
    """Where the file or folder at `path` of the merged tree lies on disk; `trees` are the layers, lowest first.

    Whiteouts, opaque folders and symbolic links, the last one included, count as in the running template: an
    absolute target starts at the template's root, and `..` never leaves it. None when there is no such member, or
    the links go round in circles.
    """
    root = tuple(reversed(trees))
    stack = [root]
    todo = _parts(path)
    links = 0
    while todo:
        name = todo.pop()
        if name == "..":
            if len(stack) > 1:
                stack.pop()
            continue
        found = _lookup(stack[-1], name)
        if not found:
            return None
        if stat.S_ISLNK(os.lstat(found[0]).st_mode):
            links += 1
            if links > _MAX_LINKS:
                return None
            target = os.readlink(found[0])
            if target.startswith("/"):
                stack = [root]
            todo += _parts(target)
        else:
            stack.append(found)
    return next(iter(stack[-1]), None)


def _parts(path: str) -> list[str]:
    """The names of a path, last first."""
    return [part for part in reversed(path.split("/")) if part not in ("", ".")]


def _lookup(folders: Iterable[Path], name: str) -> tuple[Path, ...]:
    """Where `name` lies in a merged folder, topmost first: several folders, or one member of another type."""
    found: list[Path] = []
    for folder in folders:
        candidate = folder / name
        try:
            status = os.lstat(candidate)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if not stat.S_ISDIR(status.st_mode):
            return tuple(found) if found or overlay.is_whiteout(status) else (candidate,)
        found.append(candidate)
        if overlay.is_opaque(candidate):
            break
    return tuple(found)
