"""The files of a template: by its layers, or by the list in its manifest alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.errors import BuilderError
from builder.tree import Entry, Index, merge, resolve

_LINKS = 40
_LARGEST = 4 << 20  # bytes that are read of a file


@dataclass(frozen=True)
class Tree:
    """Every member by its path without a leading slash; the bytes too where there are layers."""

    entries: Mapping[str, Entry]
    layers: tuple[Path, ...] = ()  # folders, lowest first; () when only the list is known

    @property
    def readable(self) -> bool:
        """Whether the bytes of files can be seen."""
        return bool(self.layers)

    def find(self, path: str) -> Entry | None:
        """The file or folder at `path`, links followed as in the running template; None when there is none."""
        todo = [part for part in reversed(path.split("/")) if part not in ("", ".")]
        at: list[str] = []
        links = 0
        while todo:
            name = todo.pop()
            if name == "..":
                at = at[:-1]
                continue
            entry = self.entries.get("/".join([*at, name]))
            if entry is None:
                return None
            if entry.type != "link":
                at.append(name)
                continue
            links += 1
            if links > _LINKS:
                return None
            if entry.target.startswith("/"):
                at = []
            todo += [part for part in reversed(entry.target.split("/")) if part not in ("", ".")]
        return self.entries.get("/".join(at))

    def read(self, path: str) -> str | None:
        """The beginning of the file at `path` as text, links followed; None when there is none or it is not seen."""
        place = resolve(self.layers, path)
        if place is None or not place.is_file():
            return None
        try:
            with place.open("rb") as file:
                return file.read(_LARGEST).decode("utf-8", "surrogateescape")
        except OSError as error:
            raise BuilderError(error.strerror or str(error), where=place) from error

    def within(self, folder: str) -> Iterator[Entry]:
        """Every member below `folder`."""
        start = folder.strip("/") + "/"
        return (entry for path, entry in self.entries.items() if path.startswith(start))


def of_layers(layers: Sequence[tuple[Index, Path]]) -> Tree:
    """The tree that the layers make, lowest first, each with its index."""
    merged = merge([index for index, _ in layers])
    return Tree({entry.path: entry for entries in merged for entry in entries}, tuple(place for _, place in layers))


def of_manifest(manifest: Mapping[str, Any], layers: Sequence[Path] = ()) -> Tree:
    """The tree that a manifest lists. `layers`: folders that hold these very files, if they are at hand.

    Raises BuilderError when the list is damaged.
    """
    try:
        entries = (_entry(row) for row in manifest["files"])
        return Tree({entry.path: entry for entry in entries}, tuple(layers))
    except (KeyError, TypeError, ValueError) as error:
        raise BuilderError("the manifest's list of files is damaged", hint="build the template again") from error


def _entry(row: Mapping[str, Any]) -> Entry:
    return Entry(
        path=str(row["path"]),
        type=str(row["type"]),
        mode=int(row["mode"], 8),
        uid=int(row["uid"]),
        gid=int(row["gid"]),
        size=int(row.get("size", 0)),
        target=str(row.get("target", "")),
    )
