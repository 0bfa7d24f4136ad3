"""`builder store`: what is kept, whether it is sound, and what may go."""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import IO, Any

import click

from builder import build as building
from builder import console
from builder.commands.common import json_option, locked, recipe_argument, variant_option
from builder.errors import BuilderError, UsageError
from builder.lock.model import Blob
from builder.progress import Progress
from builder.sandbox.userns import become_root
from builder.stage import KINDS
from builder.store import Store, bundle, default_root, upkeep
from builder.store.tools import tool_blobs
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
    here = _opened()
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
    """Read every byte of the store; remove what is damaged. Exit status 1 when something was, or there is no store.

    \b
    Example:
      builder store verify
    """
    damages = upkeep.verify(_opened(), jobs=jobs, progress=console.progress(as_json))
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
    here = _opened()
    if older_than is None and max_size is None:
        older_than = 30 * _SPANS["d"]
    done = upkeep.gc(here, older_than=older_than, max_size=max_size, dry_run=dry_run)
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


@store.command("export")
@recipe_argument
@click.argument("file", metavar="FILE|-")
@variant_option
def export_(recipe: Path, file: str, variant: str | None) -> None:
    """Write what the store has for a build of RECIPE to FILE, or to stdout: blobs, tools and layers, as one tar.

    What is not in the store, or was changed there, is left out with a line; when nothing is left, the exit status is 1.

    \b
    Examples:
      builder store export recipes/smoke smoke.store.tar
      builder store export recipes/smoke - | ssh host builder store import -
    """
    here, progress = _opened(), console.progress(False)
    loaded, lock = locked(recipe, variant)
    nodes = building.plan(loaded, lock, KINDS)
    wanted = tuple({blob.sha256: blob for blob in (*building.blobs(nodes), *tool_blobs())}.values())
    blobs = _sound(here, wanted, progress)
    if len(blobs) < len(wanted):
        missing = f"{len(wanted) - len(blobs)} of {len(wanted)} locked files"
        progress.say(f"{missing} are not in the store, or were damaged there: left out")
    found = building.standing(nodes, here)
    if len(found) < len(nodes):
        progress.say(f"stage {nodes[len(found)].stage.name} and those above it are not built: left out")
    layers = []
    for layer in found:
        if changed := layer.changed():
            progress.say(f"layer {layer.facts['stage']} was changed on disk ({changed[0]}): left out")
        else:
            layers.append(layer)
    if not blobs and not layers:
        raise BuilderError(f"has nothing of {recipe}", where=here.root, hint="is BUILDER_STORE as in the build?")
    with _output(file) as out:
        bundle.write(here, blobs, layers, out, progress)
    progress.say(f"{_count(len(blobs), 'blob')} and {_count(len(layers), 'layer')} exported")


@store.command("import")
@click.argument("file", metavar="FILE|-")
@json_option
def import_(file: str, as_json: bool) -> int:
    """Take what `builder store export` wrote to FILE, or stdin, into the store, verified; what is there stays.

    What is damaged or missing in FILE, as when it was cut short, is left out with a line; then the exit status is 1.
    The rest is taken: a later build has to fetch or make what was left out.
    A layer is compared with the index that came with it: import only what was exported by those you trust.

    \b
    Examples:
      builder store import smoke.store.tar
      ssh host builder store export recipes/smoke - | builder store import -
    """
    become_root()
    progress = console.progress(as_json)
    with _input(file) as source:
        done = bundle.read(Store(default_root()), source, progress)
    if as_json:
        left_out = [{"what": what, "why": why} for what, why in done.left_out]
        counts = {"blobs": done.blobs, "layers": done.layers, "size": done.size, "there": done.there}
        console.print_json({**counts, "left_out": left_out})
        return 1 if left_out else 0
    for what, why in done.left_out:
        progress.say(f"{what} {why}: left out")
    taken = f"{_count(done.blobs, 'blob')} and {_count(done.layers, 'layer')} taken, {console.human(done.size)}"
    click.echo(f"{taken}; {done.there} in the store before, {len(done.left_out)} left out")
    return 1 if done.left_out else 0


def _opened() -> Store:
    """The store, looked at as the user whom its layers belong to. Raises BuilderError when there is none."""
    become_root()
    here = Store(default_root())
    if not here.root.is_dir():
        hint = "`builder fetch` and `builder build` make one; BUILDER_STORE names another"
        raise BuilderError("there is no store", where=here.root, hint=hint)
    return here


def _sound(here: Store, blobs: Sequence[Blob], progress: Progress) -> list[Blob]:
    """Those of `blobs` that the store has, with the right bytes; they are read, and damaged ones removed."""
    with progress.task("verify", sum(blob.size for blob in blobs)) as task, ThreadPoolExecutor() as pool:

        def look(blob: Blob) -> bool:
            is_sound = here.sound(blob)
            task.advance(blob.size)
            return is_sound

        try:
            return [blob for blob, is_sound in zip(blobs, pool.map(look, blobs), strict=True) if is_sound]
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _output(name: str) -> Iterator[IO[bytes]]:
    """Stdout for `-`, else a new file that gets its name when all is in it. Raises BuilderError."""
    if name == "-" and sys.stdout.isatty():
        raise UsageError("no archive is written to a terminal", hint="name a file, or write into a pipe")
    path = Path(name)
    with _told("stdout" if name == "-" else name, "give the name of a file in a folder that is there"):
        if name == "-":
            with open(os.dup(sys.stdout.fileno()), "wb") as file:
                yield file
        elif path.exists() and not path.is_file():
            with path.open("wb") as file:
                yield file
        else:
            with _whole_or_nothing(path) as file:
                yield file


@contextmanager
def _whole_or_nothing(path: Path) -> Iterator[IO[bytes]]:
    """A file that becomes `path` when the block is done; what a killed builder left of one goes. Raises OSError."""
    beginning = f".{path.name}.part-"
    for left in path.parent.glob(f"{glob.escape(beginning)}*"):
        with suppress(OSError), left.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()
    part = path.with_name(f"{beginning}{token_hex(4)}")
    try:
        with part.open("xb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
            file.flush()
            os.fsync(file.fileno())
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _input(name: str) -> Iterator[IO[bytes]]:
    """Stdin for `-`, else the file. Raises BuilderError, with the name in those of the block too."""
    with _told("stdin" if name == "-" else name, "give a file that `builder store export` wrote"):
        if name == "-":
            yield sys.stdin.buffer
        else:
            with open(name, "rb") as file:
                yield file


@contextmanager
def _told(where: str, hint: str) -> Iterator[None]:
    """Name the file in what the block raises; `hint` is the way out when it is none."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        way = "free some space there" if full else None if isinstance(error, BrokenPipeError) else hint
        raise BuilderError(error.strerror or str(error), where=where, hint=way) from error
    except BuilderError as error:
        if error.where is not None:
            raise
        raise BuilderError(error.what, where=where, hint=error.hint) from error


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
