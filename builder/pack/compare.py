"""What differs between two templates, from what lies beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.pack import bill, manifest

KINDS = ("size", "stage", "deb", "wheel", "url", "file")
"""What two templates are compared by, in this order."""


@dataclass(frozen=True)
class Difference:
    """Something that only one of two templates has (then the other side is None), or that is not the same in both.

    A size is a number of bytes; a stage an object of digest and size; a deb, a wheel or a file by URL a list of
    [version, sha256]; a file what the manifest says of it.
    """

    kind: str  # one of KINDS
    name: str
    old: Any
    new: Any


def compare(old: Sequence[Path], new: Sequence[Path]) -> list[Difference]:
    """The differences of two templates, each given as itself, its manifest and its bill of materials.

    Only the last two are read. Raises BuilderError when one is missing or unsound.
    """
    sides = [_describe(parts[1], parts[2]) for parts in (old, new)]
    return [
        Difference(kind, name, *(side[kind].get(name) for side in sides))
        for kind in KINDS
        for name in dict.fromkeys([*sides[0][kind], *sides[1][kind]])
        if sides[0][kind].get(name) != sides[1][kind].get(name)
    ]


def _describe(told_path: Path, bill_path: Path) -> Mapping[str, Mapping[str, Any]]:
    told = manifest.read(told_path)
    try:
        return {
            "size": {"template": told["size"], "unpacked": told["tar_size"]},
            "stage": {row["name"]: {"digest": row["digest"], "size": row["size"]} for row in told["stages"]},
            "file": {row["path"]: {**row} for row in told["files"]},
            **_inputs(bill_path),
        }
    except (TypeError, KeyError) as error:
        raise manifest.unsound(told_path) from error


def _inputs(path: Path) -> Mapping[str, Mapping[str, list[list[str]]]]:
    """The bill's components by kind and name, each with all its versions and sha256."""
    found: dict[str, dict[str, list[list[str]]]] = {"deb": {}, "wheel": {}, "url": {}}
    try:
        for kind, name, version, sha256 in _components(bill.read(path)):
            found[kind].setdefault(name, []).append([version, sha256])
    except (TypeError, KeyError, AttributeError) as error:
        raise bill.unsound(path) from error
    return {kind: {name: sorted(rows[name]) for name in sorted(rows)} for kind, rows in found.items()}


def _components(listed: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    for row in listed.get("components", []):
        reference: str = row["bom-ref"]
        sha256 = row["hashes"][0]["content"]
        if reference.startswith("url:"):
            yield "url", reference.removeprefix("url:"), row["name"], sha256
        else:
            kind = "deb" if reference.startswith("pkg:deb/") else "wheel"
            yield kind, row["name"], row["version"], sha256
