"""Find the libraries with GPU code in a file, a folder tree or an archive."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from builder.errors import BuilderError
from builder.gpucode import fatbin
from builder.gpucode.fatbin import Container
from builder.progress import Progress, Silent
from builder.tree import files

_JOBS = 8  # files read at a time: it is the disk that takes the time, not the processor
_SMALLEST = 4096  # bytes; the headers alone of a library take more


@dataclass(frozen=True)
class Library:
    """A file with GPU code, or with something in its place that could not be read."""

    path: str  # below what was scanned; the name of a file that was given by itself
    size: int  # bytes
    containers: tuple[Container, ...]
    problem: str = ""  # why nothing is known of its GPU code


Scratch = Callable[[], AbstractContextManager[Path]]
"""Makes an empty folder that is removed after use, as `Store.scratch` does."""


def scan(path: Path, scratch: Scratch, *, progress: Progress | None = None) -> tuple[Library, ...]:
    """The libraries with GPU code at `path`, sorted: a library, a folder (links are not followed) or an archive.

    An archive (tar, plain or gz, xz, zst; zip, as wheels are) is read once; its libraries are unpacked into a folder
    of `scratch` one at a time, so that there must be room for the largest. A library whose GPU code cannot be read is
    told in `Library.problem`. Raises BuilderError when `path` is missing or no such thing, or the archive is damaged.
    """
    with (progress or Silent()).task("reading GPU code") as task:
        found = []
        for library in _read(path, scratch):
            if library.containers or library.problem:
                task.note(library.path)
                found.append(library)
    return tuple(sorted(found, key=lambda library: library.path))


def _read(path: Path, scratch: Scratch) -> Iterator[Library]:
    try:
        if path.is_dir():
            with ThreadPoolExecutor(_JOBS) as pool:
                yield from pool.map(_library, _tree(path))
        elif not path.is_file():
            raise BuilderError("is no file and no folder", where=path)
        elif fatbin.holds(_head(path)):
            yield _library((path.name, path))
        else:
            with scratch() as folder:
                for name, place in files(path, folder, fatbin.holds):
                    yield _library((name.removeprefix("./"), place))
    except OSError as error:
        raise BuilderError(error.strerror or str(error), where=error.filename or path) from error


def _tree(root: Path) -> Iterator[tuple[str, Path]]:
    folders = [os.fspath(root)]
    while folders:
        with os.scandir(folders.pop()) as rows:
            for row in rows:
                if row.is_dir(follow_symlinks=False):
                    folders.append(row.path)
                elif row.is_file(follow_symlinks=False) and row.stat(follow_symlinks=False).st_size >= _SMALLEST:
                    yield os.path.relpath(row.path, root), Path(row.path)


def _head(path: Path) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read(4)


def _library(candidate: tuple[str, Path]) -> Library:
    name, place = candidate
    size = place.stat().st_size
    try:
        return Library(name, size, fatbin.read(place))
    except BuilderError as error:
        return Library(name, size, (), error.what)
