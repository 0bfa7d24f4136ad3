"""A tar stream of what a stage lays over the template: owners, modes, times and order are ours, never the machine's."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from pathlib import Path

from builder.errors import BuilderError, UsageError

PRIVATE = ("dev", "proc", "run", "sys", "tmp")
"""Folders that are no part of a template: private to every run, empty in the result."""


class Members:
    """Writes members, each owned by root, into the tar file at `path`; parent folders come by themselves.

    A later member replaces an earlier one of its name. Every method takes an absolute template path, and raises
    UsageError for one that leads to a private folder, BuilderError when something cannot be read or written.
    Use as a context manager.
    """

    def __init__(self, path: Path, epoch: int) -> None:
        self._path = path
        self._epoch = epoch
        self._folders: set[str] = set()

    def __enter__(self) -> Members:
        try:
            self._tar = tarfile.open(self._path, "w", format=tarfile.PAX_FORMAT)
        except OSError as error:
            raise _failed(error, self._path) from error
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._tar.close()
        except OSError as error:
            if kind is None:
                raise _failed(error, self._path) from error

    def tree(self, source: Path, path: str, *, keep_times: bool = False) -> None:
        """The file, symbolic link or folder with all that is in it at `source`; nothing is followed.

        Files become 0755 when their owner may run them and 0644 otherwise, folders 0755. Times are SourceDateEpoch
        unless `keep_times`.
        """
        try:
            status = source.lstat()
            mtime = int(status.st_mtime) if keep_times else self._epoch
            if stat.S_ISDIR(status.st_mode):
                self._folder(_names(path))
                for name in sorted(os.listdir(source)):
                    self.tree(source / name, f"{path.rstrip('/')}/{name}", keep_times=keep_times)
            elif stat.S_ISLNK(status.st_mode):
                self.link(path, os.readlink(source))
            elif stat.S_ISREG(status.st_mode):
                with source.open("rb") as content:
                    self._file(path, content, status.st_size, bool(status.st_mode & stat.S_IXUSR), mtime)
            else:
                raise BuilderError("neither a file, a folder nor a link", where=source)
        except OSError as error:
            raise _failed(error, source) from error

    def file(self, path: str, content: bytes, *, executable: bool = False) -> None:
        """A file with these bytes."""
        try:
            self._file(path, io.BytesIO(content), len(content), executable, self._epoch)
        except OSError as error:
            raise _failed(error, self._path) from error

    def link(self, path: str, target: str) -> None:
        """A symbolic link."""
        info = self._info(path, tarfile.SYMTYPE, 0o777, self._epoch)
        info.linkname = target
        self._tar.addfile(info)

    def _file(self, path: str, content: io.BufferedIOBase, size: int, executable: bool, mtime: int) -> None:
        info = self._info(path, tarfile.REGTYPE, 0o755 if executable else 0o644, mtime)
        info.size = size
        self._tar.addfile(info, content)

    def _info(self, path: str, kind: bytes, mode: int, mtime: int) -> tarfile.TarInfo:
        names = _names(path)
        if not names:
            raise UsageError("is the root of the template, not a place for a file or link", where=path)
        self._folder(names[:-1])
        info = tarfile.TarInfo("/".join(names))
        info.type, info.mode, info.mtime = kind, mode, mtime
        return info

    def _folder(self, names: list[str]) -> None:
        for count in range(1, len(names) + 1):
            name = "/".join(names[:count])
            if name in self._folders:
                continue
            self._folders.add(name)
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.mtime = tarfile.DIRTYPE, 0o755, self._epoch
            self._tar.addfile(info)


def unpack_command(archive: str) -> tuple[str, ...]:
    """The command that lays the tar at `archive` over the root, from inside: GNU tar, tar(1).

    A link of the template to a folder (/bin) is followed and stays, and a folder that is there keeps its mode and
    owner; any other member replaces what has its name.
    """
    switches = ("--numeric-owner", "--same-permissions", "--keep-directory-symlink", "--no-overwrite-dir")
    return ("tar", "--extract", f"--file={archive}", "--directory=/", *switches)


def wrong_path(path: str) -> str | None:
    """What is wrong with an absolute template path, None when nothing is."""
    names = path.split("/")
    if not path.startswith("/") or "\0" in path:
        return "must be an absolute path of the template"
    if "." in names or ".." in names:
        return "must have no '.' or '..' in it"
    first = next(filter(None, names), "")
    return f"lies in /{first}, which is no part of a template" if first in PRIVATE else None


def _names(path: str) -> list[str]:
    if (wrong := wrong_path(path)) is not None:
        raise UsageError(wrong, where=path)
    return [name for name in path.split("/") if name]


def _failed(error: OSError, place: Path) -> BuilderError:
    return BuilderError(error.strerror or str(error), where=error.filename or place)
