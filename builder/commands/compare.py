"""`builder diff`: two templates side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from builder import console, pack
from builder.commands.common import json_option
from builder.commands.template_file import template_file
from builder.pack import Difference

_SHOWN = 100
"""Files that a table shows one by one."""


@click.command()
@click.argument("old", metavar="A", type=click.Path(path_type=Path))
@click.argument("new", metavar="B", type=click.Path(path_type=Path))
@json_option
def diff(old: Path, new: Path, as_json: bool) -> None:
    """Show what differs between the templates A and B: sizes, stages, debs, wheels, other inputs and files.

    Only the manifests and bills of materials beside them are read.

    \b
    Example:
      builder diff artifacts/smoke_1_amd64.tar.zst artifacts/smoke_2_amd64.tar.zst
    """
    found = pack.compare(*(pack.parts(template_file(side)) for side in (old, new)))
    if as_json:
        console.print_json(
            {
                kind: [{"name": row.name, "a": row.old, "b": row.new} for row in found if row.kind == kind]
                for kind in pack.DIFFERENCE_KINDS
            }
        )
        return
    if not found:
        click.echo("no difference")
        return
    files = [row for row in found if row.kind == "file"]
    rows = [row for row in found if row.kind != "file"] + files[:_SHOWN]
    console.print_table(("", "name", "A", "B"), [(row.kind, shown(row.name or "/"), *_sides(row)) for row in rows])
    if files[_SHOWN:]:
        click.echo(f"and {len(files) - _SHOWN:,} more files; --json tells them all")


def shown(name: str) -> str:
    """A name that does no harm to a terminal."""
    return name if name.isprintable() else ascii(name)


def _sides(row: Difference) -> tuple[str, str]:
    if row.kind == "size":
        return console.human(row.old), console.human(row.new)
    if row.kind == "stage":
        old, new = (
            "" if side is None else f"{console.human(side['size'])} {side['digest'][:12]}" for side in _pair(row)
        )
    elif row.kind == "file":
        old, new = _file_sides(row.old, row.new)
    else:
        hashes = row.old is not None and row.new is not None and _versions(row.old) == _versions(row.new)
        old, new = ("" if side is None else _versions(side, hashes=hashes) for side in _pair(row))
    return old, new


def _pair(row: Difference) -> tuple[Any, Any]:
    return row.old, row.new


def _versions(rows: Sequence[Sequence[str]], *, hashes: bool = False) -> str:
    return ", ".join(f"{version} {sha256[:12]}" if hashes else version for version, sha256 in rows)


def _file_sides(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> tuple[str, str]:
    """A file that only one has by type and size, else what is not the same in both."""
    if old is None or new is None:
        one, other = (
            "" if side is None else f"{side['type']} {console.human(side['size'])}" if "size" in side else side["type"]
            for side in (old, new)
        )
        return one, other
    names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    one, other = (", ".join(f"{name} {_short(side.get(name))}" for name in names) for side in (old, new))
    return one, other


def _short(value: Any) -> str:
    text = shown(str(value))
    return text[:12] if len(text) == 64 else text
