"""`builder check`: what can be proved of a template and its profiles without a GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from builder import build as building
from builder import check as checking
from builder import console, pack
from builder.check import Finding, Severity, Subject
from builder.commands.common import beside, json_option, locked, variant_option
from builder.deploy import profile as profiles
from builder.deploy.profile.model import Profile
from builder.errors import BuilderError, UsageError
from builder.recipe import load
from builder.recipe.model import Recipe
from builder.sandbox.userns import become_root
from builder.stage import KINDS
from builder.store import Store, default_root

_HOLES = frozenset(hole.id for hole in checking.holes.holes())
_STYLE = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.NOT_CHECKED: "cyan", Severity.NOTE: None}


@click.command()
@click.argument("what", type=click.Path(path_type=Path, exists=True), metavar="TEMPLATE|RECIPE")
@variant_option
@click.option("--recipe", type=click.Path(path_type=Path), help="The recipe of TEMPLATE; recipes/NAME when left out.")
@click.option(
    "--profile", "names", multiple=True, metavar="NAME", help="Check this profile; all of the recipe otherwise."
)
@click.option("--together", is_flag=True, help="The profiles are to run at the same time on the target's cards.")
@click.option("--quick", is_flag=True, help="By the list of files alone: no GPU code, no run of vLLM.")
@json_option
def check(
    what: Path,
    variant: str | None,
    recipe: Path | None,
    names: tuple[str, ...],
    together: bool,
    quick: bool,
    as_json: bool,
) -> int:
    """Check without a GPU whether TEMPLATE, or the built layers of RECIPE, would serve its profiles.

    vLLM itself, as the template holds it, decides on each profile on a simulated card. Exit status 1 when there is an
    error. What cannot be seen is told as "not checked".

    \b
    Examples:
      builder check recipes/vllm-blackwell
      builder check artifacts/vllm-blackwell-pypi_0.10.2-1_amd64.tar.zst --profile fp8
      builder check recipes/vllm-blackwell --profile awq --profile embed --profile fp8 --together
    """
    if not quick:
        become_root()
    store = None if quick else Store(default_root())
    with _subject(what, variant, recipe, store, as_json) as (subject, of):
        wanted = _profiles(of, names)
        found = checking.run(
            subject,
            wanted,
            together=together,
            store=store,
            build_paths=_build_paths(of),
            progress=console.progress(as_json),
        )
    if as_json:
        console.print_json(_result(subject, wanted, found))
    else:
        show(subject, wanted, found)
    return 1 if checking.worst(found) else 0


@contextmanager
def _subject(
    what: Path, variant: str | None, recipe: Path | None, store: Store | None, as_json: bool
) -> Iterator[tuple[Subject, Recipe | None]]:
    """What is checked, and its recipe when that is known."""
    if what.is_dir() or what.suffix == ".toml":
        if recipe is not None:
            raise UsageError("--recipe goes with a template", hint="leave it out")
        if store is None:
            raise UsageError("--quick reads the manifest of a template", hint="name the file in artifacts/")
        yield _of_recipe(what, variant, store)
        return
    if variant is not None:
        raise UsageError("--variant goes with a recipe", hint="a template is of one variant already")
    of = _recipe_of(what, recipe)
    if store is None:
        yield checking.of_list(what, of), of
        return
    with checking.of_template(what, of, store, console.progress(as_json)) as subject:
        yield subject, of


def _of_recipe(path: Path, variant: str | None, store: Store) -> tuple[Subject, Recipe]:
    loaded, lock = locked(path, variant)
    nodes = building.plan(loaded, lock, KINDS)
    layers = building.standing(nodes, store)
    if len(layers) < len(nodes):
        name = nodes[len(layers)].stage.name
        raise BuilderError(f"stage {name} is not built", where=path, hint=f"run `builder template {path}`")
    subject = checking.of_recipe(loaded, layers)
    made = building.current(loaded, lock, nodes, store, beside(loaded, "artifacts"))
    return replace(subject, file=made.path if made else None), loaded


def _recipe_of(template: Path, recipe: Path | None) -> Recipe | None:
    """The recipe that was given, else that of the manifest's name beside the template's folder, if it is there."""
    manifest = pack.read_manifest(template)
    path = recipe or template.absolute().parent.parent / "recipes" / str(manifest.get("recipe", ""))
    if recipe is None and not (path / "recipe.toml").is_file():
        return None
    return load(path, KINDS, str(manifest["variant"]) or None)


def _profiles(recipe: Recipe | None, names: Sequence[str]) -> tuple[Profile, ...]:
    if recipe is None:
        if names:
            raise UsageError("the template's recipe is not known, so its profiles are not", hint="give --recipe")
        return ()
    return tuple(profiles.load(recipe.directory, name) for name in names or profiles.names(recipe.directory))


def _build_paths(recipe: Recipe | None) -> tuple[str, ...]:
    """Folders of this machine that a template must not name."""
    folders = [default_root()]
    if recipe is not None:
        folders.append(recipe.directory.resolve().parent.parent)
    return tuple(map(str, folders))


def show(subject: Subject, profiles: Sequence[checking.Profile], found: Sequence[Finding]) -> None:
    """Print findings for people."""
    holes = [finding for finding in found if finding.rule in _HOLES and finding.severity is Severity.NOTE]
    for finding in found:
        if finding not in holes:
            severity = click.style(finding.severity.value, fg=_STYLE[finding.severity])
            click.echo(f"{severity}  {_shown(finding.subject)}: {_shown(finding.what)} [{finding.rule}]")
            for name, text in (("seen", finding.evidence), ("instead", finding.mend), ("known from", finding.source)):
                if text:
                    click.echo(f"    {name}: {_shown(text)}")
    if holes:
        click.echo(f"\nPublished holes of these versions, as known on {checking.holes.read_on()}:\n")
        rows = [(finding.rule, finding.evidence, finding.what, finding.mend) for finding in holes]
        console.print_table(("id", "version", "what, and when", "instead"), rows)
        click.echo()
    counts = Counter(finding.severity for finding in found)
    told = ", ".join(f"{counts[severity]} {severity.value}" for severity in Severity if counts[severity])
    click.echo(f"{subject.name}, {len(profiles)} profiles: {told or 'nothing found'}")


def _shown(text: str) -> str:
    """Text that may come from inside a template, harmless to a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))


def _result(subject: Subject, profiles: Sequence[checking.Profile], found: Sequence[Finding]) -> dict[str, Any]:
    return {
        "subject": subject.name,
        "profiles": [profile.name for profile in profiles],
        "findings": [
            {
                "rule": finding.rule,
                "severity": finding.severity.value,
                "subject": finding.subject,
                "what": finding.what,
                "evidence": finding.evidence,
                "instead": finding.mend,
                "source": finding.source,
            }
            for finding in found
        ],
        "counts": {severity.value: sum(one.severity is severity for one in found) for severity in Severity},
    }
