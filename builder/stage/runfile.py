"""NVIDIA's driver package, a `.run` file: a shell script, then a compressed tar with a `.manifest`. Nothing of it runs.

The header's `skip=N` says that the tar begins at line N (makeself 1.6.0-nv; a decompressor may lie before it). The
manifest has eight lines about the whole, of which the second is the version, then one line per file:

    NAME MODE TYPE [NATIVE|COMPAT32] [PATH] [TARGET of a symbolic link] MODULE:NAME

as parse_manifest() of nvidia-installer (install-from-cwd.c) reads it.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from builder import tree
from builder.errors import BuilderError

_SKIP = re.compile(rb"^skip=(\d{1,7})$", re.MULTILINE)
_HEAD = 64 << 10  # bytes in which skip= stands; it is the fourth line
_HEADER_MAX = 64 << 20  # bytes before the tar
_MANIFEST_MAX = 16 << 20
_ABOUT = 8  # lines before the first file
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Item:
    """One line of a manifest."""

    path: str  # relative to the package's root, never leaves it; of a link: where the link belongs
    mode: int
    type: str  # CUDA_LIB, UTILITY_BINARY, CUDA_SYMLINK, ...
    is_compat32: bool
    target: str | None  # of a symbolic link
    line: int


def unpack(runfile: Path, dest: Path, *, name: str) -> None:
    """Unpack the tar inside `runfile` into the new folder `dest`; `name` is the package's, for errors.

    Raises BuilderError when it is no package of this form, or holds a member that `tree.extract` refuses.
    """
    payload = dest.parent / name
    try:
        with runfile.open("rb") as source:
            _seek_payload(source, name)
            with payload.open("xb") as copy:
                shutil.copyfileobj(source, copy, _CHUNK)
        tree.extract(payload, dest)
    except OSError as error:
        raise BuilderError(error.strerror or str(error), where=error.filename or payload) from error
    finally:
        payload.unlink(missing_ok=True)


def manifest(package: Path, version: str, *, name: str) -> tuple[Item, ...]:
    """The files that the unpacked `package` lists, in its order.

    Raises BuilderError naming the line when it cannot be read, is for another version or has a path that leaves the
    package.
    """
    where = f"{name}: .manifest"
    file = package / ".manifest"
    if file.is_symlink() or not file.is_file() or file.stat().st_size > _MANIFEST_MAX:
        raise BuilderError("is not there, or no plain file", where=where)
    lines = file.read_text("utf-8", "surrogateescape").split("\n")
    if len(lines) <= _ABOUT:
        raise BuilderError(f"has {len(lines)} lines, too few", where=where)
    if lines[1].strip() != version:
        raise BuilderError(f"is of driver {lines[1].strip()!a}, not {version}", where=where)
    items = []
    for number, line in enumerate(lines[_ABOUT:], _ABOUT + 1):
        if not line.strip():
            break
        items.append(_item(line, number, where))
    return tuple(items)


def source(package: Path, item: Item, *, name: str) -> Path:
    """Where the file of `item` lies in the unpacked `package`. Raises BuilderError when it is no plain file there."""
    path = package / item.path
    is_inside = path.parent.resolve() == (package.resolve() / item.path).parent
    if path.is_symlink() or not path.is_file() or not is_inside:
        raise BuilderError(f"line {item.line}: no plain file {item.path!a} in the package", where=f"{name}: .manifest")
    return path


def _seek_payload(file: BinaryIO, name: str) -> None:
    head = file.read(_HEAD)
    skip = _SKIP.search(head)
    if not head.startswith(b"#!") or skip is None or int(skip[1]) < 2:
        raise BuilderError("is no NVIDIA driver package: no shell header that says skip=", where=name)
    newlines = int(skip[1]) - 1
    offset = 0
    file.seek(0)
    while offset < _HEADER_MAX and (chunk := file.read(_CHUNK)):
        found = chunk.count(b"\n")
        if found >= newlines:
            at = -1
            for _ in range(newlines):
                at = chunk.index(b"\n", at + 1)
            file.seek(offset + at + 1)
            return
        newlines -= found
        offset += len(chunk)
    raise BuilderError(f"ends before line {int(skip[1])}, where its tar should begin", where=name)


def _item(line: str, number: int, where: str) -> Item:
    words = [word for word in line.split() if not word.startswith("MODULE:")]
    if len(words) < 3 or not re.fullmatch("[0-7]{1,5}", words[1]):
        raise BuilderError(f"line {number} is not NAME MODE TYPE ...", where=where)
    path = PurePosixPath(words[0])
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise BuilderError(f"line {number}: path {words[0]!a} leaves the package", where=where)
    is_link = words[2].endswith("_SYMLINK")
    if is_link and len(words) < 4:
        raise BuilderError(f"line {number}: a link without a target", where=where)
    return Item(
        path=os.fspath(path),
        mode=int(words[1], 8),
        type=words[2],
        is_compat32=words[3:4] == ["COMPAT32"],
        target=words[-1] if is_link else None,
        line=number,
    )
