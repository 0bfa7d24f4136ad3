"""`builder recipe`, `schema`, `export`: look at recipes and hand them to other tools."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from builder import console
from builder import lock as locks
from builder.commands.common import json_option, lock_folder, recipe_argument, variant_option
from builder.recipe import build, export_mkosi, load, manual, named_files, resolve
from builder.recipe import schema as recipe_schema
from builder.recipe.mkosi import OLDEST
from builder.stage import KINDS


@click.group()
def recipe() -> None:
    """Look into recipes, and check them.

    \b
    Example:
      builder recipe check recipes/smoke
    """


@recipe.command()
@recipe_argument
@variant_option
@json_option
def show(recipe: Path, variant: str | None, as_json: bool) -> None:
    """Show all settings of RECIPE: one variant applied, defaults filled in.

    \b
    Example:
      builder recipe show recipes/vllm-blackwell --variant nvidia
    """
    resolved = resolve(recipe, KINDS)
    chosen = resolved.choose(variant)
    settings = resolved.settings[chosen]
    if as_json:
        console.print_json({**settings, "Variant": chosen, "Variants": list(resolved.variants)})
        return
    click.echo(f"RECIPE: {resolved.path}" + (f", variant {chosen}" if chosen else ""))
    for name, content in settings.items():
        if isinstance(content, list):
            for table in content:
                _print_table(f"{name.upper()} {table['Name']}", table)
        elif content is not None:
            _print_table(name.upper(), content)


def _print_table(title: str, table: Mapping[str, Any]) -> None:
    click.echo(f"\n    {title}:")
    for key, value in table.items():
        first, *others = _shown(value)
        click.echo(f"{key:>28}: {first}")
        for line in others:
            click.echo(f"{'':>28}  {line}")


def _shown(value: Any) -> Iterator[str]:
    """A value as text, one line for each of its items; what is not set is "none"."""
    if isinstance(value, list):
        yield from [line for item in value for line in _shown(item)] or ["none"]
    elif isinstance(value, dict):
        yield " ".join(f"{key}={text}" for key, text in value.items()) or "none"
    elif isinstance(value, bool):
        yield "yes" if value else "no"
    else:
        yield "none" if value in (None, "") else str(value)


@recipe.command()
@recipe_argument
@json_option
def check(recipe: Path, as_json: bool) -> None:
    """Validate RECIPE with all of its variants, and say what was checked.

    \b
    Example:
      builder recipe check recipes/vllm-blackwell
    """
    resolved = resolve(recipe, KINDS)
    rows = []
    for name in resolved.settings:
        one = build(resolved, name)
        skipped = sum(stage.skip is not None for stage in one.stages)
        rows.append((name, len(one.stages), skipped, len(one.venvs), len(one.urls), len(named_files(one, KINDS))))
    columns = ("variant", "stages", "skipped", "venvs", "urls", "files")
    if as_json:
        variants = [dict(zip(columns, row, strict=True)) for row in rows]
        console.print_json({"recipe": str(resolved.path), "default": resolved.default, "variants": variants})
        return
    console.print_table(columns, [(row[0] or "(none)", *row[1:]) for row in rows], right=columns[1:])
    click.echo(f"{resolved.path} is valid: checked were keys, types, values, requirements, references and named files")


@click.command()
@click.option("--markdown", is_flag=True, help="The same as tables for people: docs/recipe-keys.md.")
def schema(markdown: bool) -> None:
    """Print the JSON Schema of recipes, which editors use.

    \b
    Example:
      builder schema > recipe.schema.json
    """
    if markdown:
        click.echo(manual(KINDS), nl=False)
    else:
        console.print_json(recipe_schema(KINDS))


@click.group()
def export() -> None:
    """Write a recipe in another tool's form.

    \b
    Example:
      builder export mkosi recipes/smoke smoke.mkosi
    """


@export.command()
@recipe_argument
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@variant_option
@click.option(
    "--mkosi-version",
    type=click.IntRange(min=OLDEST),
    default=OLDEST,
    show_default=True,
    help="The version of mkosi that will read it; keys that it lacks are left out.",
)
def mkosi(recipe: Path, folder: Path, variant: str | None, mkosi_version: int) -> None:
    """Write RECIPE to DIR, new or empty, as configuration of mkosi: one subimage for each stage.

    What mkosi cannot express stands there as comments.

    \b
    Example:
      builder export mkosi recipes/smoke /tmp/smoke && mkosi --directory /tmp/smoke summary
    """
    loaded = load(recipe, KINDS, variant)
    lock = lock_folder(loaded)
    snapshot = locks.read(lock).snapshot if (lock / "lock.toml").exists() else ""
    export_mkosi(loaded, folder, KINDS, version=mkosi_version, snapshot=snapshot or None)
    click.echo(f"{folder}: {sum(stage.skip is None for stage in loaded.stages)} images for mkosi {mkosi_version}")
