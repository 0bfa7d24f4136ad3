"""The content-addressed store: blobs by sha256, layers by stage key, and room for what is being made.

    blobs/sha256/ab/HEX                      a verified file, mode 0444
    layers/IDMAP/KEY/{tree/,index,meta.json} an unpacked tree, used as a lower directory of overlayfs
    tools/IDMAP/KEY/{tree/,index}            unpacked wheels of the builder's own tools
    tmp/session-*/                           one running builder's unfinished work
    tmp/partial/HEX                          a download that the next run goes on with
    tmp/logs/NAME                            what a stage that failed last said
    lock                                     see `builder.store.session`

The atime of a blob, of a layer's meta.json and of a tool's index says when it was last used.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import tempfile
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from builder import canonical
from builder.errors import BuilderError
from builder.lock.model import Blob
from builder.store import session
from builder.store.files import chunks, drop_acl, guarded, open_unmarked, remove_tree, sha256_of, sync, write_durably
from builder.store.layer import UNSYNCED, Draft, Layer, boot
from builder.tree import Index

_META_FORMAT = 2


def default_root() -> Path:
    """$BUILDER_STORE, else builder/ in the user's cache folder (XDG Base Directory Specification)."""
    if named := os.environ.get("BUILDER_STORE"):
        return Path(named).expanduser().absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        return (cache if cache.is_absolute() else Path.home() / ".cache") / "builder"
    except RuntimeError as error:
        raise BuilderError("no home folder for the store", hint="set BUILDER_STORE") from error


class Store:
    """The store at `root`, which is made when first needed. Threads may share one; so may processes share a folder.

    Every method raises BuilderError, naming the path, when the disk is full or access is denied.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._starting = threading.Lock()
        self._session: session.Session | None = None

    @cached_property
    def idmap(self) -> str:
        """The name of the id map that trees are written under: `root` for the machine's own root."""
        with guarded(Path("/proc/self")):
            maps = [Path(f"/proc/self/{kind}_map").read_text().split() for kind in ("uid", "gid")]
        if maps != [["0", "0", "4294967295"]] * 2:
            return f"ids-{canonical.digest(maps)[:12]}"
        return "root" if os.geteuid() == 0 else f"user-{os.geteuid()}"

    @property
    def session(self) -> session.Session:
        """This builder's session, begun at first use and ended by `close`, with the store object, or the process."""
        with self._starting, guarded(self.root):
            if self._session is None:
                self.folder("tmp", "partial")
                self._session = session.begin(self.root)
                for path in (self.root / "lock", self._session.folder, self._session.folder / "lock"):
                    self._give(path)
                self._end = weakref.finalize(self, self._session.end)
            return self._session

    def close(self) -> None:
        """End this builder's session, so that `gc` may take what it used; the next use begins another."""
        with self._starting:
            if self._session is not None:
                self._end()
                self._session = None

    def folder(self, *parts: str) -> Path:
        """The folder of these names in the store, made where missing, with the owner of the store's folder."""
        path = self.root
        with guarded(path):
            path.mkdir(parents=True, exist_ok=True)
            for part in parts:
                path = path / part
                if not path.is_dir():
                    path.mkdir(exist_ok=True)
                    self._give(path)
                    sync(path.parent)
        return path

    def _give(self, path: Path) -> None:
        """Let what root adds to a user's store belong to that user, who could not use it otherwise."""
        owner = self.root.stat()
        if os.geteuid() == 0 and owner.st_uid != 0 and self.idmap == "root":
            os.chown(path, owner.st_uid, owner.st_gid)

    def mark(self, path: Path) -> os.stat_result | None:
        """Keep `path` from `gc` while this session lives; its stat data, None when it is not there."""
        _ = self.session
        with guarded(path), locked_shared(self.root):
            try:
                found = os.lstat(path)
                with suppress(PermissionError):
                    os.utime(path, follow_symlinks=False)
                return found
            except FileNotFoundError:
                return None

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """An empty folder on the store's file system, removed afterwards."""
        with guarded(self.root):
            path = Path(tempfile.mkdtemp(dir=self.session.folder))
        try:
            yield path
        finally:
            with guarded(path):
                remove_tree(path)

    def write_text(self, place: Path, text: str) -> None:
        """Make or replace the small file at `place`, relative to the store: whole or not at all."""
        with self.scratch() as scratch, guarded(self.root / place):
            (scratch / "text").write_text(text)
            self.folder(*place.parts[:-1])
            self._give(scratch / "text")
            os.replace(scratch / "text", self.root / place)

    def path(self, sha256: str) -> Path:
        """Where the blob lies when the store has it. Never write through it."""
        return self.root / "blobs" / "sha256" / sha256[:2] / sha256

    def has(self, blob: Blob) -> bool:
        """Whether the blob is here with its right size; then it is marked as used."""
        found = self.mark(self.path(blob.sha256))
        return found is not None and stat.S_ISREG(found.st_mode) and found.st_size == blob.size

    def sound(self, blob: Blob) -> bool:
        """Whether the blob is here with its right bytes, which are read; a damaged one is removed."""
        path = self.path(blob.sha256)
        if not self.has(blob):
            return False
        with guarded(path):
            if sha256_of(path) == blob.sha256:
                return True
            path.unlink(missing_ok=True)
        return False

    def add(self, source: Path, sha256: str | None = None) -> str:
        """Copy the file `source` into the store; its sha256. Raises BuilderError when that is not `sha256`."""
        with guarded(source):
            fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return self.add_stream(chunks(fd), sha256, name=str(source))
        finally:
            os.close(fd)

    def add_stream(self, parts: Iterable[bytes], sha256: str | None = None, *, name: str = "stream") -> str:
        """Store the bytes of `parts`; their sha256. Raises BuilderError, naming `name`, when that is not `sha256`."""
        with self.scratch() as scratch:
            with guarded(scratch / "blob"):
                found = write_durably(scratch / "blob", parts)
            if sha256 not in (None, found):
                raise BuilderError(f"expected sha256 {sha256}, got {found}", where=name)
            self.publish(scratch / "blob", found)
        return found

    def publish(self, file: Path, sha256: str) -> None:
        """Give a verified, synced file of the store's own file system its final name."""
        final = self.path(sha256)
        with guarded(final):
            file.chmod(0o444)
            self._give(file)
            self.folder(*final.relative_to(self.root).parts[:-1])
            with locked_shared(self.root):
                os.utime(file)
                os.replace(file, final)
            sync(final.parent)

    def layer(self, key: str) -> Layer | None:
        """The layer of this key when it is complete; then it is marked as used."""
        folder = self.root / "layers" / self.idmap / key
        if self.mark(folder / "meta.json") is None:
            return None
        layer = read_layer(folder)
        if layer is None:
            self.remove_folder(folder)
        return layer

    def layers(self) -> Iterator[Layer]:
        """Every complete layer under the id map in force, by key; none is marked."""
        place = self.root / "layers" / self.idmap
        with suppress(FileNotFoundError):
            for name in sorted(os.listdir(place)):
                if (layer := read_layer(place / name)) is not None:
                    yield layer

    def drop_layer(self, layer: Layer) -> None:
        """Remove the layer; its name is free at once."""
        self.remove_folder(layer.tree.parent)

    def remove_folder(self, folder: Path) -> None:
        """Remove a folder of the store: first its name, then what is in it. One that is gone is fine."""
        with guarded(folder):
            self.folder("tmp")
            if (aside := session.take_away(self.root, folder)) is not None:
                remove_tree(aside)

    @contextmanager
    def draft(self, key: str) -> Iterator[Draft]:
        """Room to make the layer of this key; gone afterwards unless it was committed."""
        with self.scratch() as scratch:
            with guarded(scratch):
                layer = scratch / "layer"
                for path in (layer, layer / "tree", scratch / "work", scratch / "scratch"):
                    path.mkdir()
                    drop_acl(path)
                    path.chmod(0o755)
            yield Draft(key, layer / "tree", scratch / "work", scratch / "scratch", self._commit)

    def _commit(self, draft: Draft, index: Index, facts: Mapping[str, Any]) -> Layer:
        folder = draft.upper.parent
        meta = {
            "format": _META_FORMAT,
            "digest": index.digest,
            "size": index.size,
            "files": index.files,
            "facts": dict(facts),
        }
        final = self.root / "layers" / self.idmap / draft.key
        with guarded(final):
            index.save(folder / "index")
            sync(folder / "index")
            write_durably(folder / UNSYNCED, [boot()])
            write_durably(folder / "meta.json", [json.dumps(meta, sort_keys=True).encode()])
            self.folder("layers", self.idmap)
            while not self._place(folder, final):
                if (existing := self.layer(draft.key)) is not None:
                    return existing
                self.remove_folder(final)
            sync(final.parent)
        return Layer(draft.key, final / "tree", index.digest, index.size, index.files, dict(facts))

    def _place(self, folder: Path, final: Path) -> bool:
        """Rename a finished layer to its name; False when another builder's has it already."""
        with locked_shared(self.root):
            try:
                os.rename(folder, final)
            except OSError:
                if final.is_dir():
                    return False
                raise
        return True


def locked_shared(root: Path) -> Any:
    """The store's lock, shared: see `session.locked`."""
    return session.locked(root, fcntl.LOCK_SH)


def read_layer(folder: Path) -> Layer | None:
    """The layer in `folder` without marking it; None when it is not complete."""
    try:
        with open_unmarked(folder / "meta.json") as file:
            meta = json.load(file)
        if meta["format"] != _META_FORMAT:
            return None
        return Layer(folder.name, folder / "tree", meta["digest"], meta["size"], meta["files"], meta["facts"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
