"""What is in the store, whether it is sound, and what may go.

Blobs are shared by all users of a store; layers and tools are looked at under the id map in force, the only one that
shows their owners as they are.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from builder import tree
from builder.errors import BuilderError
from builder.progress import Progress, Silent
from builder.store import session
from builder.store.files import guarded, open_unmarked, remove_tree, sha256_of
from builder.store.layer import Layer
from builder.store.store import Store, read_layer
from builder.tree import Index

KINDS = ("blob", "layer", "tool", "partial")
"""What a store holds; a partial is a download that was not finished."""


@dataclass(frozen=True)
class Item:
    """One thing that is kept or removed as a whole."""

    kind: str  # one of KINDS
    name: str  # sha256 or key
    path: Path
    size: int  # bytes
    used: int  # nanoseconds since 1970


@dataclass(frozen=True)
class Damage:
    """One thing that was not what its name says, and was removed."""

    kind: str
    name: str
    what: str


@dataclass(frozen=True)
class Collected:
    """What `gc` removed, or would remove, and what stays."""

    removed: tuple[Item, ...]
    kept: int
    kept_size: int  # bytes
    in_use: int  # of those kept: used by a builder that runs now

    @property
    def size(self) -> int:
        """Bytes removed."""
        return sum(item.size for item in self.removed)


def ls(store: Store) -> list[Item]:
    """All blobs, layers, tools and unfinished downloads; nothing is read but names and sizes.

    Raises BuilderError when a folder cannot be read.
    """
    with guarded(store.root):
        return [*_blobs(store), *_trees(store, "layer"), *_trees(store, "tool"), *_partials(store)]


def gc(store: Store, *, older_than: float | None, max_size: int | None, dry_run: bool = False) -> Collected:
    """Remove what was not used for `older_than` seconds, then the least recently used down to `max_size` bytes.

    None means no such limit; a `max_size` of 0 keeps nothing, empty things neither. Whatever a builder that runs now
    has used since it began is kept, so that builds need not wait; see `builder.store.session`. Raises BuilderError when
    something cannot be removed.
    """
    aside: list[Path | None] = []
    with guarded(store.root):
        store.folder("tmp")
        session.remove_dead(store.root)
        with session.locked(store.root, fcntl.LOCK_EX):
            items = sorted(ls(store), key=lambda item: (item.used, item.name))
            start = session.oldest_start(store.root)
            idle = [item for item in items if not _in_use(item, start)]
            total = sum(item.size for item in items)
            removed = _choose(idle, total, older_than, max_size)
            if not dry_run:
                aside = [_take_away(store, item) for item in removed]
        for folder in aside:
            if folder is not None:
                remove_tree(folder)
    size = total - sum(item.size for item in removed)
    return Collected(tuple(removed), len(items) - len(removed), size, len(items) - len(idle))


def verify(store: Store, *, jobs: int | None = None, progress: Progress | None = None) -> list[Damage]:
    """Read every blob, layer and tool; remove what is damaged and say what it was.

    Layers above a damaged one go too: they may have been made of its damaged files.
    `jobs` files are read at a time (None: one a CPU). Raises BuilderError when something cannot be read or removed.
    """
    items = [item for item in ls(store) if item.kind != "partial"]
    blobs = [item for item in items if item.kind == "blob"]
    found: list[Damage] = []
    progress = progress or Silent()
    with (
        progress.task("verify", sum(item.size for item in items)) as task,
        ThreadPoolExecutor(jobs or os.cpu_count()) as pool,
    ):
        try:
            for item, what in zip(blobs, pool.map(_blob_damage, blobs), strict=True):
                task.advance(item.size)
                if what is not None:
                    with guarded(item.path):
                        item.path.unlink(missing_ok=True)
                    found.append(Damage(item.kind, item.name, what))
        finally:
            pool.shutdown(cancel_futures=True)
        layers = list(store.layers())
        for item in items[len(blobs) :]:
            what = _tree_damage(item, jobs)
            task.advance(item.size)
            if what is not None:
                store.remove_folder(item.path)
                found.append(Damage(item.kind, item.name, what))
    for layer in _above(layers, {damage.name for damage in found}):
        store.drop_layer(layer)
        found.append(Damage("layer", layer.key, "was made over a damaged layer"))
    return found


def _above(layers: Sequence[Layer], damaged: Collection[str]) -> list[Layer]:
    """Those of `layers` that were made over one whose key is among `damaged`."""
    gone = set(damaged)
    found: list[Layer] = []
    while more := [layer for layer in layers if layer.key not in gone and gone.intersection(layer.facts["over"])]:
        found += more
        gone |= {layer.key for layer in more}
    return found


def _blobs(store: Store) -> Iterator[Item]:
    for folder in _entries(store.root / "blobs" / "sha256"):
        for entry in _entries(folder.path):
            with suppress(FileNotFoundError):
                found = entry.stat(follow_symlinks=False)
                yield Item("blob", entry.name, Path(entry.path), found.st_size, found.st_atime_ns)


def _trees(store: Store, kind: str) -> Iterator[Item]:
    stamp = {"layer": "meta.json", "tool": "index"}[kind]
    for entry in _entries(store.root / f"{kind}s" / store.idmap):
        path = Path(entry.path)
        with suppress(FileNotFoundError):
            try:
                used = os.stat(path / stamp).st_atime_ns
            except (FileNotFoundError, NotADirectoryError):
                used = entry.stat(follow_symlinks=False).st_mtime_ns
            yield Item(kind, entry.name, path, _tree_size(path), used)


def _tree_size(path: Path) -> int:
    try:
        with open_unmarked(path / "meta.json") as file:
            return int(json.load(file)["size"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    try:
        return Index.load(path / "index").size
    except BuilderError:
        return 0


def _partials(store: Store) -> Iterator[Item]:
    for entry in _entries(store.root / "tmp" / "partial"):
        with suppress(FileNotFoundError):
            found = entry.stat(follow_symlinks=False)
            yield Item("partial", entry.name, Path(entry.path), found.st_size, found.st_mtime_ns)


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _choose(items: list[Item], total: int, older_than: float | None, max_size: int | None) -> list[Item]:
    """Of `items`, oldest first, those beyond either limit; `total` is the size of the whole store."""
    limit = None if older_than is None else time.time_ns() - int(older_than * 1e9)
    chosen = []
    for item in items:
        if (limit is not None and item.used < limit) or (max_size is not None and (total > max_size or not max_size)):
            chosen.append(item)
            total -= item.size
    return chosen


def _in_use(item: Item, start: int | None) -> bool:
    if start is not None and item.used >= start:
        return True
    if item.kind != "partial":
        return False
    with suppress(FileNotFoundError):
        fd = os.open(item.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
    return False


def _take_away(store: Store, item: Item) -> Path | None:
    """Remove a file, or a folder's name; then where the folder is now."""
    if item.kind in ("layer", "tool"):
        return session.take_away(store.root, item.path)
    item.path.unlink(missing_ok=True)
    return None


def _blob_damage(item: Item) -> str | None:
    if not re.fullmatch(r"[0-9a-f]{64}", item.name) or not item.path.is_file() or item.path.is_symlink():
        return "is not named by a sha256"
    try:
        found = sha256_of(item.path)
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None if found == item.name else f"has sha256 {found}"


def _tree_damage(item: Item, jobs: int | None) -> str | None:
    try:
        index = Index.load(item.path / "index")
        damaged = tree.verify(index, item.path / "tree", jobs=jobs)
    except BuilderError as error:
        return error.what if item.path.exists() else None
    if item.kind == "layer" and ((layer := read_layer(item.path)) is None or not layer.tells(index)):
        return "has a meta.json that does not fit" if item.path.exists() else None
    if not damaged:
        return None
    count = "1 member differs" if len(damaged) == 1 else f"{len(damaged)} members differ"
    return f"{count}, first {damaged[0] or '/'!a}"
