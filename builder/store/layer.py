"""A finished layer, and one that is being made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from builder import canonical
from builder.errors import BuilderError
from builder.tree import Index, changed, verify

UNSYNCED = "unsynced"
"""A file beside a layer's tree: the boot in which it was captured. Its bytes may be lost when that ended early."""


def boot() -> bytes:
    """What tells this boot of the kernel from all others (random(4), boot_id)."""
    return Path("/proc/sys/kernel/random/boot_id").read_bytes()


@dataclass(frozen=True)
class Layer:
    """One stage's layer in the store. Its tree is never written to."""

    key: str
    tree: Path
    digest: str  # of its index: content, not key
    size: int  # bytes in files
    files: int
    facts: Mapping[str, Any]
    """Of the build: recipe, stage, kind, the body whose digest is the key, and the keys of the layers `over` which it
    was made."""

    @cached_property
    def index(self) -> Index:
        """The members as they were captured. Raises BuilderError when the index cannot be read."""
        return Index.load(self.tree.parent / "index")

    def changed(self) -> list[str]:
        """Paths of members that are not as captured, by stat data; `index` or `meta.json` when that one is damaged.

        The first time in another boot than that of the capture all bytes are read: the kernel may not have brought
        them to the disk before a power cut, and stat data does not show every loss.
        """
        try:
            index = self.index
        except BuilderError:
            return ["index"]
        if not self.tells(index):
            return ["meta.json"]
        if found := changed(index, self.tree):
            return found
        mark = self.tree.parent / UNSYNCED
        try:
            survived = mark.read_bytes() == boot()
        except FileNotFoundError:
            survived = True
        except OSError:
            survived = False
        if not survived and not (found := verify(index, self.tree)):
            with suppress(OSError):  # of a store that may only be read: looked at again next time
                mark.unlink()
        return found

    def tells(self, index: Index) -> bool:
        """Whether what meta.json says, this object, is true of `index` and of the key."""
        try:
            key = canonical.digest(self.facts["body"])
            texts = [self.facts[name] for name in ("recipe", "stage", "kind")] + list(self.facts["over"])
            readable = all(text.isprintable() for text in texts)
        except (KeyError, TypeError, AttributeError):
            return False
        told = (self.key, self.digest, self.size, self.files)
        return readable and told == (key, index.digest, index.size, index.files)


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

        `facts` are JSON values, as in `Layer`. Raises BuilderError when the disk is full.
        """
        return self._commit(self, index, facts)
