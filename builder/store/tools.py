"""The builder's own tools: locked wheels (`builder/data/tools.toml`), unpacked in the store."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import tomli

from builder import canonical
from builder.errors import BuilderError
from builder.lock.model import Blob
from builder.store.files import guarded, sync
from builder.store.store import Store
from builder.tree import Index, changed, extract, scan


@dataclass(frozen=True)
class _Tool:
    wheels: tuple[Blob, ...]
    program: str  # path in the unpacked wheels; "" for a set of Python packages

    @property
    def key(self) -> str:
        return canonical.digest([blob.sha256 for blob in self.wheels])


def tool_blobs(*names: str) -> tuple[Blob, ...]:
    """The locked files of the tools of these names, of all tools without any. Raises KeyError."""
    tools = _tools()
    return tuple(blob for name in names or tools for blob in tools[name].wheels)


def tool(store: Store, name: str) -> Path:
    """A locked tool, ready to run: the executable `uv`, or the folder `pip-tools` for PYTHONPATH.

    It is unpacked at first use. Later its files' stat data is compared; what was changed is unpacked anew, so let
    Python write no bytecode there.
    Raises BuilderError when a wheel is not in the store, or damaged; KeyError for an unknown name.
    """
    wanted = _tools()[name]
    folder = store.root / "tools" / store.idmap / wanted.key
    if not _sound(store, folder):
        _unpack(store, name, wanted, folder)
    return folder / "tree" / wanted.program


def _sound(store: Store, folder: Path) -> bool:
    if store.mark(folder / "index") is None:
        return False
    try:
        return not changed(Index.load(folder / "index"), folder / "tree")
    except BuilderError:
        return False


def _unpack(store: Store, name: str, wanted: _Tool, folder: Path) -> None:
    for blob in wanted.wheels:
        if not store.sound(blob):
            raise BuilderError(
                f"{blob.filename} is not in the store", where=f"tool {name}", hint="run `builder fetch RECIPE`"
            )
    with store.scratch() as scratch:
        made = scratch / "tool"
        with guarded(folder):
            made.mkdir()
            for blob in wanted.wheels:
                extract(store.path(blob.sha256), made / "tree")
            scan(made / "tree").save(made / "index")
            store.folder("tools", store.idmap)
            while not _placed(made, folder) and not _sound(store, folder):
                store.remove_folder(folder)
            sync(folder.parent)


def _placed(made: Path, folder: Path) -> bool:
    """Rename a finished tool to its place; False when one is there, as when another thread or builder was first."""
    try:
        os.rename(made, folder)
    except OSError:
        if not folder.is_dir():
            raise
        return False
    return True


@cache
def _tools() -> Mapping[str, _Tool]:
    text = resources.files("builder").joinpath("data/tools.toml").read_text(encoding="utf-8")
    return {
        name: _Tool(tuple(_blob(**wheel) for wheel in table["wheel"]), table.get("program", ""))
        for name, table in tomli.loads(text).items()
    }


def _blob(url: str, size: int, sha256: str) -> Blob:
    return Blob(sha256=sha256, size=size, filename=url.rpartition("/")[2], urls=(url,))
