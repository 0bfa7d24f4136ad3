"""What a lock holds: every byte that enters a template, by sha256."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Blob:
    """One locked file: enough to fetch it, verify it and say which it is."""

    sha256: str
    size: int
    filename: str
    urls: tuple[str, ...]  # tried in order


@dataclass(frozen=True)
class Deb:
    """One locked Debian package."""

    name: str
    version: str
    architecture: str
    suite: str  # bookworm, bookworm-security, ...
    blob: Blob


@dataclass(frozen=True)
class Wheel:
    """One locked wheel (or sdist): the file that the template's interpreter takes."""

    name: str  # normalised, PEP 503
    version: str
    blob: Blob
    uploaded: str  # RFC 3339


# What stages ask of the lock.


@dataclass(frozen=True)
class DebRequest:
    """Resolve `packages` on top of the sets in `below`; an empty `below` means from nothing, with the essential set."""

    id: str
    packages: tuple[str, ...]
    below: tuple[str, ...]


@dataclass(frozen=True)
class VenvRequest:
    """Resolve one venv's requirements for the interpreter at `python` in the locked base."""

    id: str  # the venv's name
    python: str
    requirements: tuple[str, ...]
    constraints: tuple[str, ...]
    overrides: tuple[str, ...]
    exclude_newer: str
    index: str


@dataclass(frozen=True)
class UrlRequest:
    """Lock one file by URL; a published sha256 and size, when given, are taken without fetching."""

    id: str  # the [[Url]]'s name
    url: str
    sha256: str | None
    size: int | None


Request = DebRequest | VenvRequest | UrlRequest


@dataclass(frozen=True)
class Lock:
    """`locks/NAME/`: lock.toml and the wheels-*.txt beside it, read as one."""

    recipe: str  # name
    snapshot: str  # YYYYMMDDTHHMMSSZ of the Debian archives
    requests: Mapping[str, str] = field(default_factory=dict)
    """`KIND:ID` to the canonical digest of the request that was resolved: how `--check` sees a stale lock."""
    debs: Mapping[str, tuple[Deb, ...]] = field(default_factory=dict)  # by stage lock_id
    venvs: Mapping[str, tuple[Wheel, ...]] = field(default_factory=dict)  # by venv name
    urls: Mapping[str, Blob] = field(default_factory=dict)  # by [[Url]] name
