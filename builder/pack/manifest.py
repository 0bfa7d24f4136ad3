"""The manifest beside a template: where it comes from, every file in it, and where each segment lies."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from json.encoder import encode_basestring_ascii as quoted
from pathlib import Path
from typing import Any

from builder.errors import BuilderError
from builder.pack.content import Member
from builder.pack.info import Info
from builder.pack.write import Written
from builder.recipe.model import Target
from builder.tree import Entry

FORM = 4
"""Raised when manifest or bill of materials would tell more of the same template, which is then told anew."""

_OF_STAGE = (("name", str), ("kind", str), ("digest", str), ("size", int))
_OF_VENV = ("name", "path", "python", "requirements")


def files(members: Iterable[Member]) -> str:
    """What `render` tells of the files, which is most of it and known before the template is."""
    return _list("files", (_file(member.entry) for member in members))


def render(
    info: Info,
    files: str,
    written: Written,
    *,
    name: str,
    version: str,
    architecture: str,
    level: int,
    epoch: int,
) -> str:
    """The manifest as JSON: one line a setting, a stage, a frame and a file, so that two of them compare with diff.

    `files` is what the function of that name gives. `frames` holds ``[identity, offset, length, bytes of tar]``. A
    file is an object of path, type, mode (octal), uid, gid, mtime and, where it has them, size, sha256, target, xattrs
    (hexadecimal) and sparse.
    """
    head = {
        "format": 1,
        "name": name,
        "version": version,
        "architecture": architecture,
        "recipe": info.recipe,
        "variant": info.variant,
        "recipe_digest": info.recipe_digest,
        "source_date_epoch": epoch,
        "compress_level": level,
        "sha256": written.sha256,
        "size": written.size,
        "tar_size": written.tar_size,
        "skipped": dict(info.skipped),
        "target": None if info.target is None else asdict(info.target),
        "venvs": [{name: getattr(venv, name) for name in _OF_VENV} for venv in info.venvs],
    }
    parts = [
        *(f"{_json(key)}: {_json(value)}" for key, value in head.items()),
        _list("stages", (_json(asdict(stage)) for stage in info.stages)),
        _list("frames", map(_json, written.records)),
        files,
    ]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def read(path: Path) -> Mapping[str, Any]:
    """The manifest at `path`. Raises BuilderError when it is missing or is no manifest of this format."""
    try:
        told = json.loads(path.read_bytes())
    except OSError as error:
        raise BuilderError(error.strerror or str(error), where=path, hint="build the template again") from error
    except (ValueError, RecursionError) as error:
        raise BuilderError("is no JSON", where=path, hint="build the template again") from error
    if not isinstance(told, dict) or told.get("format") != 1:
        raise BuilderError("is no manifest of format 1", where=path, hint="build the template again")
    if missing := sorted({"name", "version", "variant", "stages", "skipped", "frames", "files"} - told.keys()):
        raise BuilderError(f"tells nothing of {', '.join(missing)}", where=path, hint="build the template again")
    if not _is_sound(told):
        raise unsound(path)
    return told


def _is_sound(told: Mapping[str, Any]) -> bool:
    """Whether what every reader of a manifest takes as given is of the right type."""
    stages, skipped, files = told["stages"], told["skipped"], told["files"]
    return (
        all(isinstance(rows, list) for rows in (stages, files, told["frames"]))
        and all(isinstance(row, dict) for row in (*stages, *files))
        and all(isinstance(stage.get(name), kind) for stage in stages for name, kind in _OF_STAGE)
        and all(isinstance(file.get("path"), str) for file in files)
        and isinstance(skipped, dict)
        and all(isinstance(reason, str) for reason in skipped.values())
        and all(isinstance(told.get(name, 0), int) for name in ("size", "tar_size"))
    )


def target(told: Mapping[str, Any], path: Path) -> Target | None:
    """The card that the template of the manifest at `path` is for; None when it is for none or does not tell.

    Manifests before `FORM` 2 tell neither card nor environments. Raises BuilderError when it is damaged.
    """
    found = told.get("target")
    try:
        return None if found is None else Target(**found)
    except TypeError as error:
        raise unsound(path) from error


def venvs(told: Mapping[str, Any], path: Path) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Where each environment of the manifest at `path` lies, and what was asked for in it, in the recipe's order.

    Raises BuilderError when it is damaged.
    """
    try:
        return tuple((str(venv["path"]), tuple(map(str, venv["requirements"]))) for venv in told.get("venvs", ()))
    except (TypeError, KeyError) as error:
        raise unsound(path) from error


def unsound(path: Path) -> BuilderError:
    """What to tell about the manifest at `path` when it lacks something that `render` writes."""
    return BuilderError("is a damaged manifest", where=path, hint="build the template again")


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _list(name: str, lines: Iterable[str]) -> str:
    return f"{_json(name)}: [\n" + ",\n".join(lines) + "\n]"


def _file(entry: Entry) -> str:
    """One member as `json.dumps` would write it, but much quicker."""
    more = ""
    if entry.type == "file":
        more += f',"size":{entry.size},"sha256":"{entry.sha256}"'
    if entry.target:
        more += f',"target":{quoted(entry.target)}'
    if entry.xattrs:
        more += f',"xattrs":{_json({name: value.hex() for name, value in entry.xattrs})}'
    if entry.sparse:
        more += ',"sparse":true'
    return (
        f'{{"path":{quoted(entry.path)},"type":"{entry.type}","mode":"{entry.mode:04o}",'
        f'"uid":{entry.uid},"gid":{entry.gid},"mtime":{entry.mtime}{more}}}'
    )
