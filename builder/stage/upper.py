"""Write single members into the layer that a stage makes."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path

from builder.errors import BuilderError
from builder.stage.kind import Context

_MERGED = ("bin", "lib", "lib32", "lib64", "sbin")
"""Links into /usr in every distribution that the builder knows: a folder of that name would hide the link."""


def folder(context: Context, path: str) -> Path:
    """The folder at template path `path` in the layer, made with its parents where missing.

    A folder of the layers below keeps its mode and owner; a new one is 0755 and root's. `path` is absolute and goes
    through no link. Raises BuilderError when it cannot be made.
    """
    parts = path.strip("/").split("/")
    if parts[0] in _MERGED:
        raise BuilderError(f"{path} lies behind a link", where=f"stage {context.stage.name}", hint=f"say /usr{path}")
    here = context.upper
    try:
        for count, part in enumerate(parts, 1):
            here = here / part
            if here.is_dir() and not here.is_symlink():
                continue
            below = context.lower("/" + "/".join(parts[:count]))
            here.mkdir()
            if below is None:
                here.chmod(0o755)
            else:
                _copy_attributes(below, here)
    except OSError as error:
        raise _failed(error, here) from error
    return here


def write(context: Context, path: str, content: str | bytes, mode: int = 0o644) -> None:
    """Make the file at template path `path`. Raises BuilderError when it is there already or the disk is full."""
    place = _place(context, path)
    try:
        with open(place, "xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        place.chmod(mode)
    except OSError as error:
        raise _failed(error, place) from error


def link(context: Context, path: str, target: str) -> None:
    """Make the symbolic link at template path `path`. Raises BuilderError when something is there already."""
    place = _place(context, path)
    try:
        place.symlink_to(target)
    except OSError as error:
        raise _failed(error, place) from error


def move(context: Context, source: Path, path: str, mode: int) -> None:
    """Move the file `source` (of `context.scratch`) to template path `path`, its mtime kept.

    Raises BuilderError when something is there already or the disk is full.
    """
    place = _place(context, path)
    try:
        if os.path.lexists(place):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        shutil.move(source, place)
        place.chmod(mode)
    except OSError as error:
        raise _failed(error, place) from error


def _place(context: Context, path: str) -> Path:
    parent, name = path.rsplit("/", 1)
    return folder(context, parent) / name if parent else context.upper / name


def _copy_attributes(below: Path, here: Path) -> None:
    status = below.stat()
    os.chown(here, status.st_uid, status.st_gid)
    here.chmod(stat.S_IMODE(status.st_mode))


def _failed(error: OSError, place: Path) -> BuilderError:
    return BuilderError(error.strerror or str(error), where=place)
