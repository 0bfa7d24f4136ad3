"""What several commands share: their arguments, where things lie, and the recipe with its lock."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from builder import lock as locks
from builder.errors import BuilderError
from builder.lock.model import Lock, Request
from builder.recipe import load
from builder.recipe.model import Recipe
from builder.stage import KINDS

F = TypeVar("F", bound=Callable[..., Any])


def recipe_argument(command: F) -> F:
    """RECIPE: a recipe's folder or its recipe.toml."""
    return click.argument("recipe", type=click.Path(path_type=Path))(command)


def variant_option(command: F) -> F:
    """--variant, the recipe's default when left out."""
    return click.option("--variant", help="Variant of the recipe; its DefaultVariant when left out.")(command)


def json_option(command: F) -> F:
    """--json, for machines."""
    return click.option("--json", "as_json", is_flag=True, help="Write the result as JSON to stdout.")(command)


def beside(recipe: Recipe, what: str) -> Path:
    """The folder `what` (locks, artifacts) of the project that the recipe belongs to.

    For PROJECT/recipes/NAME that is PROJECT/what, else it lies in the recipe's own folder.
    """
    parent = recipe.directory.resolve().parent
    return (parent.parent if parent.name == "recipes" else recipe.directory) / what


def project_folder(recipe: Recipe) -> Path:
    """What the recipe belongs to: PROJECT for PROJECT/recipes/NAME, else its own folder. Without symbolic links."""
    return beside(recipe, "recipes").resolve().parent


def lock_folder(recipe: Recipe) -> Path:
    """Where the recipe's lock lies: locks/NAME, NAME being that of the recipe's folder."""
    return beside(recipe, "locks") / recipe.directory.resolve().name


def requests(recipe: Recipe) -> tuple[Request, ...]:
    """What the recipe's stages ask of the lock; skipped stages ask too, so that their inputs are pinned."""
    return locks.collect(request for stage in recipe.stages for request in KINDS[stage.kind].requests(recipe, stage))


def locked(path: Path, variant: str | None) -> tuple[Recipe, Lock]:
    """The recipe and its lock. Raises BuilderError when the lock is missing, or not of this recipe any more."""
    recipe = load(path, KINDS, variant)
    mend = f"run `builder lock {shlex.quote(str(path))}`"
    try:
        lock = locks.read(lock_folder(recipe))
    except BuilderError as error:
        if (lock_folder(recipe) / "lock.toml").exists():
            raise
        raise BuilderError(error.what, where=error.where, hint=mend) from error
    if outdated := locks.stale(lock, requests(recipe), recipe.distribution):
        raise BuilderError(
            f"the lock is not of this recipe any more: {', '.join(outdated)}",
            where=lock_folder(recipe) / "lock.toml",
            hint=mend,
        )
    return recipe, lock
