"""Where the files of NVIDIA's wheels belong in the tree of a CUDA toolkit.

Each wheel has one folder in `nvidia` with `bin`, `include`, `lib`, `nvvm`. The toolkit's layout is that of NVIDIA's
own installer: `include` and `lib` lie in `targets/x86_64-linux`.
"""

from __future__ import annotations

import filecmp
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from builder.errors import BuilderError

_PLATFORM = "targets/x86_64-linux"
_FOLDERS = {
    "bin": "bin",
    "include": f"{_PLATFORM}/include",
    "lib": f"{_PLATFORM}/lib",
    "nvvm": "nvvm",
}
FOLDER_LINKS = {"include": f"{_PLATFORM}/include", "lib64": f"{_PLATFORM}/lib"}
"""Links at the toolkit's top."""

_PACKAGING = ("__init__.py", "__pycache__")
_VERSIONED = re.compile(r"(?P<name>lib[^/]+\.so)\.\d[\d.]*")


@dataclass(frozen=True)
class Part:
    """What one wheel brings: the folder `nvidia/NAME`, on disk."""

    folder: Path
    installed: str | None  # the same folder as a template path when the template has it there, None when not


def parts(site_packages: Path, installed: str | None) -> Iterator[Part]:
    """The parts in the `site-packages` on disk, which the template has at `installed`."""
    nvidia = site_packages / "nvidia"
    if _is_folder(nvidia):
        for name in sorted(os.listdir(nvidia)):
            if _is_folder(nvidia / name):
                yield Part(nvidia / name, f"{installed}/nvidia/{name}" if installed else None)


@dataclass(frozen=True)
class Origin:
    """Where a file of the toolkit comes from."""

    place: Path
    installed: str | None


def layout(found: Iterable[Part]) -> dict[str, Origin]:
    """Each file of the toolkit, by its path there, sorted. Of two with the same bytes the first is taken.

    Raises BuilderError when two parts have different bytes for one path.
    """
    files: dict[str, Origin] = {}
    for part in found:
        for folder, target in _FOLDERS.items():
            for relative in _files(part.folder / folder, ""):
                place = part.folder / folder / relative
                path = f"{target}/{relative}"
                other = files.get(path)
                if other is None:
                    installed = f"{part.installed}/{folder}/{relative}" if part.installed else None
                    files[path] = Origin(place, installed)
                elif not filecmp.cmp(other.place, place, shallow=False):
                    what = f"{path} differs between {_wheel(other.place)} and {part.folder.name}"
                    raise BuilderError(what, hint="leave one of the two wheels out")
    return dict(sorted(files.items()))


def library_links(paths: Iterable[str]) -> dict[str, str]:
    """The links that `-lNAME` needs: the name without version of each library that has none, to the file's name."""
    known = set(paths)
    links: dict[str, str] = {}
    for path in sorted(known):
        folder, _, name = path.rpartition("/")
        if (found := _VERSIONED.fullmatch(name)) and f"{folder}/{found['name']}" not in known:
            links[f"{folder}/{found['name']}"] = name
    return links


def _files(folder: Path, prefix: str) -> Iterator[str]:
    if not _is_folder(folder):
        return
    for name in sorted(os.listdir(folder)):
        if name in _PACKAGING:
            continue
        if _is_folder(folder / name):
            yield from _files(folder / name, f"{prefix}{name}/")
        else:
            yield prefix + name


def _is_folder(place: Path) -> bool:
    """Whether it is a folder. Raises BuilderError for a link: no wheel brings one, and it could lead to the host."""
    if place.is_symlink():
        raise BuilderError("is a symbolic link, which no wheel brings", where=place)
    return place.is_dir()


def _wheel(place: Path) -> str:
    """The name of the part that a file belongs to."""
    return place.parts[len(place.parts) - place.parts[::-1].index("nvidia")]
