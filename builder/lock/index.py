"""A package index as its JSON tells it (PEP 691, PEP 700), and the one file of a version that an interpreter takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urljoin

import requests
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)
from packaging.version import Version

from builder.errors import BuilderError
from builder.lock import web
from builder.lock.model import Blob, Wheel
from builder.lock.times import moment, rfc3339

JSON = "application/vnd.pypi.simple.v1+json"


@dataclass(frozen=True)
class Interpreter:
    """What decides which files an interpreter takes."""

    version: str  # such as 3.11.2
    tags: tuple[str, ...]  # best first


@dataclass(frozen=True)
class File:
    """One file of a project."""

    filename: str
    url: str
    sha256: str
    size: int
    uploaded: datetime
    requires_python: str
    yanked: bool


def files(session: requests.Session, index: str, project: str) -> list[File]:
    """The files of `project` on `index`.

    Raises BuilderError with the page's URL when it cannot be read or tells no sha256, size or upload time.
    """
    url = f"{index.rstrip('/')}/{project}/"
    with web.get(session, url, {"Accept": JSON}) as response:
        try:
            return [_file(response.url, file) for file in response.json()["files"]]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BuilderError(
                "does not answer in JSON with a sha256, size and upload time for each file (PEP 691, PEP 700)",
                where=web.shown(url),
                hint="take another Index",
            ) from error


def _file(page: str, file: Mapping[str, Any]) -> File:
    return File(
        filename=file["filename"],
        url=urljoin(page, file["url"]),
        sha256=file["hashes"]["sha256"].lower(),
        size=int(file["size"]),
        uploaded=moment(file["upload-time"]),
        requires_python=file.get("requires-python") or "",
        yanked=bool(file.get("yanked")),
    )


def choose(
    found: Sequence[File], name: str, version: Version, interpreter: Interpreter, exclude_newer: datetime
) -> Wheel:
    """The file of `name` `version` that pip and uv install: the wheel with the best tag, an sdist when there is none.

    Raises BuilderError when no file was uploaded before `exclude_newer`, or none suits the interpreter.
    """
    of_version = [file for file in found if _version(file.filename, name) == version]
    in_time = [file for file in of_version if file.uploaded < exclude_newer]
    if of_version and not in_time:
        first = min(of_version, key=lambda file: file.uploaded)
        raise BuilderError(
            f"{first.filename} was uploaded {rfc3339(first.uploaded)}, after ExcludeNewer", where=f"{name}=={version}"
        )
    ranks = {tag: -rank for rank, tag in enumerate(interpreter.tags)}
    ranked = [(rank, file) for file in in_time if (rank := _rank(file, ranks, interpreter.version)) is not None]
    if not ranked:
        raise BuilderError(
            f"the index has no file of it for Python {interpreter.version}, {interpreter.tags[0]}",
            where=f"{name}=={version}",
        )
    file = max(ranked, key=lambda pair: pair[0])[1]
    blob = Blob(file.sha256, file.size, file.filename, (file.url,))
    return Wheel(name, str(version), blob, rfc3339(file.uploaded))


def _version(filename: str, name: str) -> Version | None:
    """The version that `filename` is of, None when it is not a wheel or sdist of `name`."""
    try:
        is_wheel = filename.endswith(".whl")
        project, version = parse_wheel_filename(filename)[:2] if is_wheel else parse_sdist_filename(filename)
    except (InvalidWheelFilename, InvalidSdistFilename):
        return None
    return version if project == canonicalize_name(name) else None


def _rank(file: File, ranks: Mapping[str, int], python: str) -> tuple[Any, ...] | None:
    """How good a file is, greatest best, as pip sees it: tag, then build number. None when it does not suit."""
    if not _allows(file.requires_python, python):
        return None
    if not file.filename.endswith(".whl"):
        return not file.yanked, -len(ranks), (), file.filename
    _, _, build, tags = parse_wheel_filename(file.filename)
    suiting = [ranks[str(tag)] for tag in tags if str(tag) in ranks]
    return (not file.yanked, max(suiting), build, file.filename) if suiting else None


def _allows(requires_python: str, python: str) -> bool:
    try:
        return SpecifierSet(requires_python).contains(python, prereleases=True)
    except InvalidSpecifier:  # pip, too, takes such a file
        return True
