"""A recipe as a tree of configuration that mkosi reads: what mkosi can express as settings, the rest as comments.

Sections, keys and file format are those of mkosi(1), versions 25 and later.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.errors import BuilderError, UsageError
from builder.recipe.keys import Key, KindInfo
from builder.recipe.model import Distribution, Recipe, Stage
from builder.recipe.settings import ARCHITECTURES, ARCHIVES
from builder.recipe.tables import default, source

OLDEST = 25
"""The first version of mkosi whose sections these are."""

_SINCE = {"Snapshot": 26}
"""Keys that versions after `OLDEST` brought."""

_RESERVED = ("main", "default", "initrd", "tools")

_FILES = "recipe"
"""The folder of an image that holds what was copied from the recipe."""

_Lines = list[str]
_Sections = dict[str, _Lines]


@dataclass(frozen=True)
class _Image:
    """One mkosi.conf and the files that it names: each by its path in the image's folder."""

    conf: str
    files: Mapping[str, Path]


def export_mkosi(
    recipe: Recipe,
    dest: Path,
    kinds: Mapping[str, KindInfo],
    *,
    version: int = OLDEST,
    snapshot: str | None = None,
) -> None:
    """Write `recipe` to the folder `dest`, new or empty, for mkosi `version`: whole or not at all.

    `snapshot` is the time of the locked Debian archives (YYYYMMDDTHHMMSSZ), which versions that know it are told.
    Raises UsageError when `dest` is in use or the version too old, BuilderError when it cannot be written.
    """
    if version < OLDEST:
        raise UsageError(f"mkosi {version} is too old", hint=f"the oldest that can read this is {OLDEST}")
    dest = Path(os.path.abspath(dest))
    _refuse_used(dest)
    images = {stage.name: image for stage, image in _stages(recipe, kinds)}
    top = _top(recipe, list(images), version, snapshot)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{dest.name}-", dir=dest.parent) as scratch:
            tree = Path(scratch, dest.name)
            _write(tree, top)
            for name, image in images.items():
                _write(tree / "mkosi.images" / name, image)
            tree.rename(dest)
    except OSError as error:
        raise BuilderError(error.strerror or str(error), where=error.filename or dest) from error


def _refuse_used(dest: Path) -> None:
    if not dest.parent.is_dir():
        raise UsageError("no such folder", where=dest.parent, hint="make it first")
    if not dest.exists() and not dest.is_symlink():
        return
    if not dest.is_dir() or dest.is_symlink() or dest == Path.cwd():
        raise UsageError("is not a folder that can be replaced", where=dest, hint="name a new folder")
    if any(dest.iterdir()):
        raise UsageError("is not empty", where=dest, hint="name a new or an empty folder")


def _write(folder: Path, image: _Image) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mkosi.conf").write_text(image.conf, encoding="utf-8")
    for name, path in image.files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, target, symlinks=True, dirs_exist_ok=True)
        else:
            shutil.copy(path, target)
            if name.endswith(".chroot"):
                target.chmod(target.stat().st_mode | 0o111)


def _top(recipe: Recipe, stages: Sequence[str], version: int, snapshot: str | None) -> _Image:
    """The main image: the last stage's tree as a compressed tar."""
    sections: _Sections = {
        "Config": [f"MinimumVersion={version}", f"Dependencies={stages[-1]}"],
        "Distribution": _distribution(recipe.distribution, version, snapshot),
        "Output": [
            "Format=tar",
            "CompressOutput=zstd",
            f"CompressLevel={recipe.compression_level}",
            f"ImageId={recipe.full_name}",
            f"ImageVersion={recipe.version}",
            "OutputDirectory=mkosi.output",
        ],
        "Content": [f"SourceDateEpoch={recipe.source_date_epoch}", f"BaseTrees=%O/{stages[-1]}", "Bootable=no"],
    }
    notes = [f'# Stage "{stage.name}" is left out: {stage.skip}' for stage in recipe.stages if stage.skip]
    if recipe.target is not None:
        notes.append(f"# Made for {recipe.target.devices} x {recipe.target.name}: mkosi has no word for a GPU.")
    return _Image(_render(notes, sections), {})


def _distribution(distribution: Distribution, version: int, snapshot: str | None) -> _Lines:
    architecture = {debian: name for name, debian in ARCHITECTURES.items()}[distribution.architecture]
    lines = [
        f"Distribution={distribution.name}",
        f"Release={distribution.release}",
        f"Architecture={architecture}",
    ]
    if extra := [component for component in distribution.components if component != "main"]:
        lines += _setting("Repositories", extra)
    archive = ARCHIVES[distribution.name]
    if distribution.mirror != archive.mirror:
        lines += _mirror(distribution, version)
    if distribution.security_mirror != archive.security_mirror:
        lines.append(f"# mkosi takes security updates from its own place, not from {distribution.security_mirror}")
    if snapshot is not None:
        supported = version >= _SINCE["Snapshot"]
        lines.append(f"Snapshot={snapshot}" if supported else f"# mkosi {version} has no Snapshot={snapshot}")
    return lines


def _mirror(distribution: Distribution, version: int) -> _Lines:
    """From version 26 on, mkosi itself puts "debian" behind a mirror of Debian."""
    mirror = distribution.mirror.rstrip("/")
    if distribution.name == "debian" and version >= 26:
        if not mirror.endswith("/debian"):
            return [f"# mkosi {version} cannot use a mirror that does not end in /debian: {mirror}"]
        mirror = mirror.removesuffix("/debian")
    return _setting("Mirror", [mirror])


def _stages(recipe: Recipe, kinds: Mapping[str, KindInfo]) -> Iterator[tuple[Stage, _Image]]:
    below: str | None = None
    for stage in recipe.stages:
        if stage.skip is None:
            if stage.name in _RESERVED:
                raise UsageError(
                    "mkosi keeps this name for an image of its own",
                    where=f'stage "{stage.name}"',
                    hint="rename the stage",
                )
            yield stage, _stage(recipe, stage, kinds[stage.kind], below)
            below = stage.name


def _stage(recipe: Recipe, stage: Stage, kind: KindInfo, below: str | None) -> _Image:
    files: dict[str, Path] = {}
    sections: _Sections = {"Config": [], "Output": ["Format=directory", f"Output={stage.name}"], "Content": []}
    if below is not None:
        sections["Config"].append(f"Dependencies={below}")
        sections["Content"].append(f"BaseTrees=%O/{below}")
    sections["Content"] += ["Bootable=no", "CleanPackageMetadata=no"]
    ours: _Lines = []
    for key in kind.keys:
        value = stage.params[key.name]
        if key.mkosi is None:
            if value != default(key):
                ours.append(_comment(f"{key.name} = {json.dumps(value, ensure_ascii=False)}"))
            continue
        items = [_exported(recipe, key, item, files) for item in _items(value)]
        sections.setdefault(key.mkosi, []).extend(_setting(key.name, items))
    notes = [_comment(f'Stage of kind "{stage.kind}": {kind.help}')]
    if ours:
        notes += ["# mkosi has no words for:", *ours]
    return _Image(_render(notes, sections), files)


def _items(value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, bool):
        return ["yes" if value else "no"]
    if isinstance(value, Mapping):
        return [f"{name}={text}" for name, text in value.items()]
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def _exported(recipe: Recipe, key: Key, item: str, files: dict[str, Path]) -> str:
    """A value as mkosi writes it; the file of the recipe that it names goes into `files`."""
    if not key.is_file or item.startswith("url:"):
        return item
    name = source(item)
    inside = os.path.relpath((recipe.directory / name).resolve(), recipe.directory.resolve().parent)
    copy = f"{_FILES}/{inside}"
    if key.name.endswith("Scripts"):
        copy += ".chroot"
    files[copy] = recipe.directory / name
    return copy + item[len(name) :]


def _setting(name: str, items: Iterable[str]) -> _Lines:
    """One setting, a line for each of its items; what mkosi's file format cannot hold becomes a comment."""
    lines, left_out = [], []
    for item in items:
        if item.startswith("url:"):
            left_out.append(_comment(f"mkosi fetches no files: {name} = {json.dumps(item)}"))
        elif any(mark in item for mark in "#,$\n\r") or item != item.strip() or not item or item.startswith("~"):
            left_out.append(_comment(f"mkosi cannot write this: {name} = {json.dumps(item, ensure_ascii=False)}"))
        else:
            lines.append(item.replace("%", "%%"))
    if len(lines) == 1:
        return [*left_out, f"{name}={lines[0]}"]
    return [*left_out, *([f"{name}=", *(f"    {line}" for line in lines)] if lines else [])]


def _comment(text: str) -> str:
    return "# " + " ".join(text.split())


def _render(notes: Iterable[str], sections: _Sections) -> str:
    parts = ["\n".join(notes), *("\n".join((f"[{name}]", *lines)) for name, lines in sections.items() if lines)]
    return "\n\n".join(part for part in parts if part) + "\n"
