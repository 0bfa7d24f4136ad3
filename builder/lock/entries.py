"""A lock as the tables of lock.toml, and back: sorted, complete, and strict about what it reads."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from builder.errors import BuilderError
from builder.lock.model import Blob, Deb, Lock, Wheel

_BLOB = ("filename", "size", "sha256", "urls")
_FIELDS = {
    "deb": ("stage", "name", "version", "architecture", "suite", *_BLOB),
    "url": ("name", *_BLOB),
    "wheel": ("venv", "name", "version", "uploaded", *_BLOB),
}
"""The arrays of tables in lock.toml and the keys of their entries, in the order in which they are written."""

MEND = "restore it, or remove it and run `builder lock`"
"""The way out of a lock.toml that nothing can be read from."""

_ID = re.compile(r"[a-z0-9][a-z0-9._-]*")
_WORD = re.compile(r"[^\s/\x00-\x1f\x7f]+")
_FORMS = {
    "stage": _ID,
    "venv": _ID,
    "name": re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]*"),
    "version": re.compile(r"[A-Za-z0-9][A-Za-z0-9.+:~!_-]*"),
    "architecture": _WORD,
    "suite": re.compile(r"[A-Za-z0-9][A-Za-z0-9./_-]*"),
    "uploaded": re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"),
    "filename": re.compile(r"(?!\.{1,2}$)[^/\x00-\x1f\x7f]+"),
    "sha256": re.compile(r"[0-9a-f]{64}"),
}
_REQUEST = re.compile(rf"distribution|(deb|venv|url):{_ID.pattern}")
_URL = re.compile(r"[a-z][a-z0-9+.-]*://\S+")


def normal(lock: Lock) -> Lock:
    """`lock` with every set sorted: what is read back after a write."""
    debs = {stage: tuple(sorted(debs, key=_deb_order)) for stage, debs in lock.debs.items()}
    venvs = {venv: tuple(sorted(wheels, key=lambda wheel: wheel.name)) for venv, wheels in lock.venvs.items()}
    return Lock(
        recipe=lock.recipe,
        snapshot=lock.snapshot,
        requests=dict(sorted(lock.requests.items())),
        debs=dict(sorted(debs.items())),
        venvs=dict(sorted(venvs.items())),
        urls=dict(sorted(lock.urls.items())),
    )


def encode(lock: Lock) -> dict[str, Any]:
    """The tables of lock.toml for `lock`, in the order in which they are written."""
    lock = normal(lock)
    return {
        "recipe": lock.recipe,
        "snapshot": lock.snapshot,
        "requests": lock.requests,
        "deb": [
            _entry("deb", {"stage": stage, **vars(deb), **vars(deb.blob)})
            for stage, debs in lock.debs.items()
            for deb in debs
        ],
        "url": [_entry("url", {"name": name, **vars(blob)}) for name, blob in lock.urls.items()],
        "wheel": [
            _entry("wheel", {"venv": venv, **vars(wheel), **vars(wheel.blob)})
            for venv, wheels in lock.venvs.items()
            for wheel in wheels
        ],
    }


def decode(data: Mapping[str, Any], path: Path) -> Lock:
    """The lock in the tables of lock.toml.

    Raises BuilderError naming `path` and the entry that is incomplete, of a wrong form, there twice, or that
    belongs to nothing that was asked for.
    """
    _keys(data, ("recipe", "snapshot", "requests", *_FIELDS), "the lock", path)
    requests = data["requests"]
    if not isinstance(data["recipe"], str) or not isinstance(data["snapshot"], str):
        _wrong("recipe and snapshot must be text", path)
    if not isinstance(requests, dict):
        _wrong("requests must be a table", path)
    for key, digest in requests.items():
        if not _REQUEST.fullmatch(key) or not _matches("sha256", digest):
            _wrong(f"request {key!r} is not of the form KIND:ID = sha256", path)
    entries = {kind: list(_entries(kind, data[kind], path)) for kind in _FIELDS}
    debs = _grouped("deb", "stage", requests, entries["deb"], _deb, path)
    venvs = _grouped("venv", "venv", requests, entries["wheel"], _wheel, path)
    urls = _grouped("url", "name", requests, entries["url"], _blob, path)
    if missing := [name for name, blobs in urls.items() if not blobs]:
        _wrong(f"url {missing[0]} was asked for and is not there", path)
    return Lock(
        recipe=data["recipe"],
        snapshot=data["snapshot"],
        requests=requests,
        debs=debs,
        venvs=venvs,
        urls={name: blobs[0] for name, blobs in urls.items()},
    )


def _deb_order(deb: Deb) -> tuple[str, str]:
    return deb.name, deb.architecture


def _entry(kind: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {field: values[field] for field in _FIELDS[kind]}


def _entries(kind: str, tables: Any, path: Path) -> Iterable[Mapping[str, Any]]:
    if not isinstance(tables, list):
        _wrong(f"{kind} must be an array of tables", path)
    seen = set()
    for number, table in enumerate(tables, 1):
        if not isinstance(table, dict):
            _wrong(f"{kind} must be an array of tables", path)
        title = f"{kind} {table.get('name', number)}"
        _keys(table, _FIELDS[kind], title, path)
        for field in _FIELDS[kind]:
            if not _matches(field, table[field]):
                _wrong(f"{field} of {title} is {table[field]!r}", path)
        identity = tuple(table.get(field) for field in ("stage", "venv", "name", "architecture"))
        if identity in seen:
            _wrong(f"{title} is there twice", path)
        seen.add(identity)
        yield table


def _grouped(
    kind: str,
    owner: str,
    requests: Mapping[str, str],
    tables: Iterable[Mapping[str, Any]],
    make: Callable[[Mapping[str, Any]], Any],
    path: Path,
) -> dict[str, tuple[Any, ...]]:
    """Each request of `kind` with what answers it, possibly nothing."""
    prefix = f"{kind}:"
    groups: dict[str, list[Any]] = {key[len(prefix) :]: [] for key in sorted(requests) if key.startswith(prefix)}
    for table in tables:
        if table[owner] not in groups:
            _wrong(f"{table['name']} is locked for {kind} {table[owner]}, which was not asked for", path)
        groups[table[owner]].append(make(table))
    return {name: tuple(group) for name, group in groups.items()}


def _deb(table: Mapping[str, Any]) -> Deb:
    return Deb(table["name"], table["version"], table["architecture"], table["suite"], _blob(table))


def _wheel(table: Mapping[str, Any]) -> Wheel:
    return Wheel(table["name"], table["version"], _blob(table), table["uploaded"])


def _blob(table: Mapping[str, Any]) -> Blob:
    return Blob(table["sha256"], table["size"], table["filename"], tuple(table["urls"]))


def _keys(table: Mapping[str, Any], expected: Iterable[str], title: str, path: Path) -> None:
    for name in expected:
        if name not in table:
            _wrong(f"{title} has no {name}", path)
    for name in table:
        if name not in expected:
            _wrong(f"{title} has an unknown key {name!r}", path)


def _matches(field: str, value: Any) -> bool:
    if field == "size":
        return type(value) is int and value >= 0
    if field == "urls":
        return isinstance(value, list) and bool(value) and all(isinstance(u, str) and _URL.fullmatch(u) for u in value)
    return isinstance(value, str) and _FORMS[field].fullmatch(value) is not None


def _wrong(what: str, path: Path) -> NoReturn:
    raise BuilderError(what, where=path, hint=MEND)
