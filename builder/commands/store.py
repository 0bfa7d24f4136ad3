"""`builder store`: what is kept, whether it is sound, and what may go."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import click

from builder import console
from builder.commands.common import json_option
from builder.sandbox.userns import become_root
from builder.store import Store, default_root, upkeep
from builder.store.upkeep import Item

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SPANS = {"h": 3600, "d": 86400, "w": 7 * 86400}


def size(text: str) -> int:
    """A number of bytes such as 50G. Raises click.BadParameter."""
    return _amount(text, _UNITS, "a size such as 50G")


def span(text: str) -> int:
    """A number of seconds such as 30d. Raises click.BadParameter."""
    return _amount(text, _SPANS, "a time such as 30d, 2w or 12h")


def _amount(text: str, units: Mapping[str, int], what: str) -> int:
    found = re.fullmatch(r"(\d+)([A-Za-z]?)", text)
    unit = next((unit for unit in units if found and found[2].lower() == unit.lower()), None)
    if found is None or unit is None:
        raise click.BadParameter(f"{text!r} is not {what}")
    return int(found[1]) * units[unit]


@click.group()
def store() -> None:
    """Look after the store of fetched files and built layers.

    It lies in $BUILDER_STORE, or in builder/ of the user's cache folder.

    \b
    Example:
      builder store ls
    """


@store.command()
@json_option
def ls(as_json: bool) -> None:
    """List what is in the store: layers one by one, the rest as sums.

    \b
    Example:
      builder store ls
    """
    become_root()
    here = Store(default_root())
    items = upkeep.ls(here)
    stages = {layer.key: layer.facts for layer in here.layers()}
    if as_json:
        sums = {kind: _sum(items, kind) for kind in upkeep.KINDS}
        layers = [_layer(item, stages.get(item.name, {})) for item in items if item.kind == "layer"]
        console.print_json({"root": str(here.root), "sums": sums, "layers": layers})
        return
    newest = sorted((item for item in items if item.kind == "layer"), key=lambda item: -item.used)
    rows = [_row(item, stages.get(item.name, {})) for item in newest]
    if rows:
        console.print_table(("layer", "recipe", "stage", "size", "last used"), rows, right=("size", "last used"))
    for kind in upkeep.KINDS:
        found = _sum(items, kind)
        click.echo(f"{_count(found['count'], kind)}, {console.human(found['size'])}")
    click.echo(f"{console.human(sum(item.size for item in items))} in {here.root}")


@store.command()
@click.option("--jobs", type=click.IntRange(min=1), help="Files read at a time; one a CPU when left out.")
@json_option
def verify(jobs: int | None, as_json: bool) -> int:
    """Read every byte of the store; remove what is damaged. Exit status 1 when something was.

    \b
    Example:
      builder store verify
    """
    become_root()
    here = Store(default_root())
    damages = upkeep.verify(here, jobs=jobs, progress=console.progress(as_json))
    if as_json:
        found = [{"kind": damage.kind, "name": damage.name, "what": damage.what} for damage in damages]
        console.print_json({"damaged": found})
    else:
        for damage in damages:
            click.echo(f"{damage.kind} {damage.name} {damage.what}: removed")
        click.echo(
            f"{len(damages)} damaged; `builder fetch` and `builder build` bring them back" if damages else "sound"
        )
    return 1 if damages else 0


@store.command()
@click.option(
    "--older-than",
    type=span,
    help="Remove what was not used for so long; 30d when --max-size is left out too.",
)
@click.option(
    "--max-size",
    type=size,
    help="Then remove the least recently used until the store is no larger.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@json_option
def gc(older_than: int | None, max_size: int | None, dry_run: bool, as_json: bool) -> None:
    """Remove what was not used lately. Safe while builds run: what they use is kept.

    \b
    Examples:
      builder store gc --older-than 30d
      builder store gc --max-size 50G --dry-run
    """
    become_root()
    if older_than is None and max_size is None:
        older_than = 30 * _SPANS["d"]
    done = upkeep.gc(Store(default_root()), older_than=older_than, max_size=max_size, dry_run=dry_run)
    if as_json:
        removed = [{"kind": item.kind, "name": item.name, "size": item.size} for item in done.removed]
        kept = {"count": done.kept, "size": done.kept_size, "in_use": done.in_use}
        console.print_json({"removed": removed, "size": done.size, "kept": kept, "dry_run": dry_run})
        return
    counts = [_count(count, kind) for kind in upkeep.KINDS if (count := _sum(done.removed, kind)["count"])]
    verb = "would remove" if dry_run else "removed"
    click.echo(
        f"{verb} {', '.join(counts) or 'nothing'}, {console.human(done.size)}; "
        f"{console.human(done.kept_size)} kept, {done.in_use} of {done.kept} in use now"
    )


def _sum(items: Sequence[Item], kind: str) -> dict[str, int]:
    sizes = [item.size for item in items if item.kind == kind]
    return {"count": len(sizes), "size": sum(sizes)}


def _count(count: int, kind: str) -> str:
    return f"{count} {kind}" if count == 1 else f"{count} {kind}s"


def _row(item: Item, facts: Mapping[str, Any]) -> tuple[str, ...]:
    return item.name[:12], facts.get("recipe", "?"), facts.get("stage", "?"), console.human(item.size), _age(item)


def _layer(item: Item, facts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "key": item.name,
        "recipe": facts.get("recipe"),
        "stage": facts.get("stage"),
        "size": item.size,
        "used": item.used // 1_000_000_000,
    }


def _age(item: Item) -> str:
    """How long ago the item was last used, in its largest whole unit."""
    seconds = max(0, time.time() - item.used / 1e9)
    for unit, span in reversed(_SPANS.items()):
        if seconds >= span:
            return f"{seconds / span:.0f} {unit} ago"
    return f"{seconds / 60:.0f} min ago"
