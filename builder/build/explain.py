"""Why a stage is cached or rebuilt: the key's inputs now against those of its last build."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from builder.store import Store

_NAMES = {
    "format": "the layer format",
    "kind": "the kind of stage",
    "version": "the code of this kind of stage",
    "epoch": "SourceDateEpoch",
    "below": "the layers below",
}
_LISTING = "listing"
_NAMED = 4
"""How many changed settings, files or inputs are named one by one."""


def remember(store: Store, recipe: str, stage: str, body: Mapping[str, Any], listing: Mapping[str, str]) -> None:
    """Keep the key's JSON of a stage that is now in the store, and the digests of its copied files, for `explain`."""
    text, place = json.dumps({**body, _LISTING: dict(listing)}, sort_keys=True), _place(recipe, stage)
    if _read(store, place) != text:
        store.write_text(place, text)


def last(store: Store, recipe: str, stage: str) -> dict[str, Any] | None:
    """The key's JSON of the last build of this stage; None when there was none or its record is damaged."""
    try:
        body = json.loads(_read(store, _place(recipe, stage)) or "")
        del body[_LISTING]
    except (ValueError, TypeError, KeyError):
        return None
    return body if isinstance(body, dict) else None


def explain(store: Store, recipe: str, stage: str, body: Mapping[str, Any], listing: Mapping[str, str]) -> str:
    """What changed since the last build of this stage, as one phrase; for a stage that is not in the store."""
    text = _read(store, _place(recipe, stage))
    if text is None:
        return "never built in this store"
    try:
        changes = list(_changes(json.loads(text), {**body, _LISTING: listing}))
    except (ValueError, TypeError, AttributeError):
        return "the record of its last build is damaged"
    return "changed: " + ", ".join(changes) if changes else "its layer is no longer in the store"


def _place(recipe: str, stage: str) -> Path:
    return Path("last", recipe, f"{stage}.json")


def _read(store: Store, place: Path) -> str | None:
    try:
        return (store.root / place).read_text(errors="replace")
    except OSError:
        return None


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    named = [text for name, text in _NAMES.items() if old.get(name) != new.get(name)]
    settings = _differing(old.get("params", {}), new.get("params", {}))
    files = [
        path for name in _differing(old.get("files", {}), new.get("files", {})) for path in _within(name, old, new)
    ]
    inputs = _differing(dict(old.get("blobs", [])), dict(new.get("blobs", [])))
    return [*named, *_some("setting", settings), *_some("file", files), *_some("locked input", inputs)]


def _within(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The files that changed in the copied file or folder `name`; itself where an older record does not list them."""
    mine = [
        {path: digest for path, digest in each.get(_LISTING, {}).items() if f"{path}/".startswith(f"{name}/")}
        for each in (old, new)
    ]
    return _differing(*mine) if all(mine) else [name]


def _some(what: str, names: list[str]) -> list[str]:
    """`names` with what they are; many are counted."""
    if len(names) > _NAMED:
        return [f"{len(names)} {what}s, {names[0]} and {names[-1]} among them"]
    return [f"{what} {name}" for name in names]


def _differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
