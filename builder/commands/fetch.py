"""`builder fetch`: bring every locked input of a recipe into the store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from builder import console
from builder.commands.common import json_option, locked, recipe_argument, variant_option
from builder.errors import UsageError
from builder.lock.model import Blob
from builder.stage import KINDS
from builder.store import Fetched, Store, default_root
from builder.store import fetch as fetch_blobs
from builder.store.download import JOBS
from builder.store.tools import tool_blobs


@click.command()
@recipe_argument
@variant_option
@click.option("--all-variants", is_flag=True, help="Fetch for every variant of the recipe.")
@click.option("--jobs", type=click.IntRange(1, 64), default=JOBS, show_default=True, help="Files fetched at a time.")
@json_option
def fetch(recipe: Path, variant: str | None, all_variants: bool, jobs: int, as_json: bool) -> None:
    """Bring every locked input of RECIPE into the store, verified; what is there already is not asked for.

    Stopped in the middle, it goes on where it was when it is run again.

    \b
    Examples:
      builder fetch recipes/vllm-blackwell
      builder fetch recipes/vllm-blackwell --all-variants
    """
    if all_variants and variant is not None:
        raise UsageError("--variant and --all-variants together", hint="take one of them")
    blobs = [*_inputs(recipe, variant, all_variants), *tool_blobs()]
    done = fetch_blobs(Store(default_root()), blobs, jobs=jobs, progress=console.progress(as_json))
    if as_json:
        console.print_json(
            {
                "files": done.files,
                "size": done.size,
                "fetched": done.fetched,
                "received": done.received,
                "seconds": round(done.seconds, 3),
            }
        )
    else:
        click.echo(_line(done))


def _inputs(path: Path, variant: str | None, all_variants: bool) -> Iterator[Blob]:
    recipe, lock = locked(path, variant)
    recipes = [recipe]
    if all_variants:
        recipes = [locked(path, name)[0] for name in recipe.variants] or recipes
    for chosen in recipes:
        for stage in chosen.stages:
            if stage.skip is None:
                yield from KINDS[stage.kind].inputs(chosen, stage, lock).blobs


def _line(done: Fetched) -> str:
    total = f"{done.files} files, {console.human(done.size)}"
    if not done.fetched:
        return f"{total}: all in the store"
    rate = console.human(done.received / max(done.seconds, 0.001))
    return f"{total}: {done.fetched} fetched, {console.human(done.received)} in {done.seconds:.1f} s, {rate}/s"
