"""`builder key`: one digest of all that a template is made from, for caches."""

from __future__ import annotations

from pathlib import Path

import click

from builder import build as building
from builder.commands.common import locked, recipe_argument, variant_option
from builder.stage import KINDS


@click.command()
@recipe_argument
@variant_option
def key(recipe: Path, variant: str | None) -> None:
    """Print the digest of RECIPE, its lock, the files that it copies, and the versions of its kinds of stage.

    A CI cache saved under it holds what the next build of the same inputs needs. The store is not looked at, and
    nothing of this machine is part of it.

    \b
    Examples:
      builder key recipes/smoke
      builder key recipes/vllm-blackwell --variant nvidia
    """
    loaded, lock = locked(recipe, variant)
    click.echo(building.recipe_digest(loaded, building.plan(loaded, lock, KINDS)))
