"""A finished layer, and one that is being made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.errors import BuilderError
from builder.tree import Index, changed


@dataclass(frozen=True)
class Layer:
    """One stage's layer in the store. Its tree is never written to."""

    key: str
    tree: Path
    digest: str  # of its index: content, not key
    size: int  # bytes in files
    files: int
    facts: Mapping[str, Any]  # what the build wrote about it: recipe, stage, ...

    def index(self) -> Index:
        """The members as they were captured. Raises BuilderError when the index cannot be read."""
        return Index.load(self.tree.parent / "index")

    def changed(self) -> list[str]:
        """Paths of members that are not as captured, by stat data; `index` or `meta.json` when that one is damaged."""
        try:
            index = self.index()
        except BuilderError:
            return ["index"]
        return ["meta.json"] if index.digest != self.digest else changed(index, self.tree)


@dataclass(frozen=True)
class Draft:
    """A layer in the making: three folders of one file system."""

    key: str
    upper: Path  # becomes the layer's tree
    work: Path  # overlayfs's own
    scratch: Path
    _commit: Callable[[Draft, Index, Mapping[str, Any]], Layer]

    def commit(self, index: Index, facts: Mapping[str, Any]) -> Layer:
        """Give the tree, described by `index`, its name; when another builder was first, theirs is the layer.

        `facts` are JSON values. Raises BuilderError when the disk is full.
        """
        return self._commit(self, index, facts)
