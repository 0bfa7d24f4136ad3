"""A recipe of two stages in plain Python, built in a moment and by anybody: a template without a sandbox.

As a program: `little.py FOLDER` fetches, builds and packs in FOLDER, and prints the template's sha256.
"""

from __future__ import annotations

import os
import random
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from builder.build import Node, Template, current, make, plan
from builder.errors import BuilderError
from builder.lock.model import Blob, Lock
from builder.progress import Silent
from builder.recipe.model import Distribution, Recipe, Stage
from builder.stage.kind import Context, Inputs, Kind
from builder.store import Store, fetch

EPOCH = 1760572800


class Said(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def base(context: Context) -> None:
    """Members of every type that a layer may have."""
    top = context.upper
    for folder in ("etc", "usr/lib", "var/cache"):
        (top / folder).mkdir(parents=True)
    for blob in context.inputs.blobs:
        (top / "usr/lib" / blob.filename).write_bytes(context.blob(blob).read_bytes())
    (top / "etc/conf").write_text("plain\n")
    (top / "etc/empty").touch()
    (top / "etc/gone").write_text("hidden by the stage above")
    (top / "usr/lib/holes").write_bytes(b"x" + bytes(1 << 18) + b"y")
    (top / "usr/lib/setuid").write_bytes(b"#!/bin/true\n")
    (top / "usr/lib/setuid").chmod(0o4755)
    os.setxattr(top / "usr/lib/setuid", "user.origin", b"little")
    os.link(top / "etc/conf", top / "etc/same")
    (top / "etc/link").symlink_to("../usr/lib/source-0")
    os.mkfifo(top / "var/fifo")
    (top / "var/cache").chmod(0o1777)


def above(context: Context) -> None:
    """What is made of the layer below and of a locked file, and a file of the layer below hidden."""
    (context.upper / "etc").mkdir()
    conf = context.lower("/etc/conf")
    assert conf is not None
    (context.upper / "etc/made").write_bytes(conf.read_bytes() * 2)
    (blob,) = context.inputs.blobs
    (context.upper / "etc/data").write_bytes(context.blob(blob).read_bytes())
    os.mknod(context.upper / "etc/gone", stat.S_IFCHR, os.makedev(0, 0))


def _takes(recipe: Recipe, stage: Stage, lock: Lock) -> Inputs:
    blobs = tuple(lock.urls.values())
    return Inputs({}, blobs=blobs[:2] if stage.kind == "base" else blobs[2:])


KINDS = {
    "base": Kind("base", 1, "", (), lambda *_: (), _takes, base),
    "above": Kind("above", 1, "", (), lambda *_: (), _takes, above),
}


@dataclass(frozen=True)
class Little:
    """The recipe, its lock with locked files behind file URLs, and the folders to build in."""

    folder: Path
    kinds: dict[str, Kind] = field(default_factory=lambda: dict(KINDS))

    @property
    def store(self) -> Store:
        """A builder of its own on the store."""
        return Store(self.folder / "store")

    @property
    def artifacts(self) -> Path:
        return self.folder / "artifacts"

    @property
    def blobs(self) -> tuple[Blob, ...]:
        return tuple(self._blob(number) for number in range(3))

    def _blob(self, number: int) -> Blob:
        content = random.Random(number).randbytes(20_000)
        path = self.folder / f"source-{number}"
        if not path.exists():
            path.write_bytes(content)
        return Blob(sha256(content).hexdigest(), len(content), path.name, (path.as_uri(),))

    @property
    def lock(self) -> Lock:
        return Lock("little", "20251016T000000Z", urls={blob.filename: blob for blob in self.blobs})

    @property
    def recipe(self) -> Recipe:
        return Recipe(
            directory=self.folder,
            name="little",
            version="1",
            variant="",
            variants=(),
            source_date_epoch=EPOCH,
            compression_level=3,
            distribution=Distribution("debian", "bookworm", "amd64", "", "", ("main",)),
            target=None,
            venvs=(),
            urls=(),
            stages=tuple(Stage(name, name, {}, None, "", 0, 600) for name in self.kinds),
        )

    @property
    def nodes(self) -> Sequence[Node]:
        return plan(self.recipe, self.lock, self.kinds)

    def fetch(self, store: Store) -> None:
        fetch(store, self.blobs)

    def build(self, store: Store, said: Said | None = None) -> Template:
        """What `builder build` does."""
        said, recipe, lock, nodes = said or Said(), self.recipe, self.lock, self.nodes
        made = current(recipe, lock, nodes, store, self.artifacts)
        if made is None:
            made, _ = make(recipe, lock, nodes, store, self.artifacts, said)
        return made


def main() -> None:
    little = Little(Path(sys.argv[1]))
    store = little.store
    try:
        little.fetch(store)
        print(little.build(store).sha256)
    except BuilderError as error:
        sys.exit(f"builder: {error}")


if __name__ == "__main__":
    main()
