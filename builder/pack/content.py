"""What of the merged layers goes into a template, in the order of the tar."""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from builder.tree import Entry, Index, merge, order


@dataclass(frozen=True)
class Layer:
    """A layer's name for messages, its index, and where its tree lies."""

    name: str
    index: Index
    tree: Path
    is_new: bool = False
    """Captured by this very run, which read every byte moments ago: they need not be compared again."""


LEFT_OUT = (
    ("dev/*", "made by the container's start"),
    ("proc/*", "mounted at start"),
    ("sys/*", "mounted at start"),
    ("run/*", "belongs to a running system"),
    ("tmp/*", "belongs to a running system"),
    ("etc/ssh/ssh_host_*", "every container has its own host keys"),
    ("root/.cache", "a cache"),
    ("var/cache/apt/archives/*", "a cache"),
    ("var/cache/apt/*.bin", "a cache"),
    ("var/cache/ldconfig/aux-cache", "a cache with inode numbers in it"),
    ("var/lib/apt/lists/*", "a cache"),
    ("var/log/*.log", "logs of the build"),
)
"""Shell patterns (a `*` crosses slashes) of paths that no template holds, and why; stages leave them out already."""

EMPTIED = ("etc/machine-id",)
"""Files that must be there and empty: every container gets its own content (machine-id(5), "initialization")."""

FIRST = "opt"
"""The folder that a template begins with: what is large lies there and seldom changes, so that after a change of the
system an earlier template's sha256 is taken over up to its end. A file elsewhere must not come after its hard link."""

_NO_BYTES = hashlib.sha256().hexdigest()


class Member(NamedTuple):
    """One member of the template and the layer that its bytes come from."""

    entry: Entry
    layer: str
    tree: Path
    is_new: bool = False  # see `Layer`


def gather(layers: Sequence[Layer]) -> list[Member]:
    """The members of the template made of `layers` (lowest first), each folder followed by all that is in it.

    The order is that of the merged tree and not layer by layer. GNU tar with --skip-old-files, as Proxmox calls it,
    gives a folder its owner, mode and mtime from its first entry and never again, and sets the mtime when it leaves
    the folder: only a folder whose content follows at once comes out with its own attributes. It also makes the
    template's bytes a function of the tree alone, however the stages are cut. `FIRST` stands before all else.
    """
    indexes = [layer.index for layer in layers]
    paths = {entry.path: entry for entries in merge(indexes) for entry in entries}
    left_out = re.compile("|".join(fnmatch.translate(pattern) for pattern, _ in LEFT_OUT))
    hidden = [Entry(path, "whiteout") for path in filter(left_out.match, paths)]
    emptied = [
        Entry(path, "file", mode=0o444, mtime=paths[path].mtime, sha256=_NO_BYTES) for path in EMPTIED if path in paths
    ]
    top = Index.of(sorted(hidden + emptied, key=lambda entry: order(entry.path)))
    sources = [*((layer.name, layer.tree, layer.is_new) for layer in layers), ("", Path(), False)]
    members = [
        Member(entry, *source)
        for source, entries in zip(sources, merge([*indexes, top]), strict=True)
        for entry in entries
    ]
    if any(_is_first(entry.path) and not _is_first(entry.target) for entry, *_ in members if entry.type == "hardlink"):
        return sorted(members, key=lambda member: order(member.entry.path))
    return sorted(members, key=lambda member: (not _is_first(member.entry.path), order(member.entry.path)))


def _is_first(path: str) -> bool:
    return path in ("", FIRST) or path.startswith(f"{FIRST}/")
