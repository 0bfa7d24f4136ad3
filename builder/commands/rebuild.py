"""`builder rebuild-check`: the same recipe again, in other surroundings, and whether the bytes are the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from builder import build as building
from builder import console
from builder.commands.common import json_option, locked, project_folder, recipe_argument, variant_option
from builder.commands.compare import shown
from builder.errors import BuilderError, UsageError
from builder.rebuild import VARIATIONS, Job, Outcome, State, rebuild, reference
from builder.sandbox import linux
from builder.sandbox.userns import become_root
from builder.stage import KINDS
from builder.store import Store, default_root
from builder.store.files import sha256_of
from builder.store.tools import tool_blobs

_FILES = 10
"""Files that differ and are named one by one."""


@click.command("rebuild-check")
@recipe_argument
@variant_option
@click.option(
    "--variations",
    metavar="NAME,...",
    help=f"Only these, several at once joined by +: {', '.join(VARIATIONS)}. All, one by one, when left out.",
)
@click.option(
    "--keep",
    type=click.Path(path_type=Path, file_okay=False),
    help="Build in this new folder and leave everything there.",
)
@json_option
def rebuild_check(recipe: Path, variant: str | None, variations: str | None, keep: Path | None, as_json: bool) -> int:
    """Build RECIPE again from its lock, once for each variation of the surroundings, and compare the templates.

    Every rebuild has a store of its own with the locked files and no layer. Where the bytes differ, the first stage
    that differs, its files and the difference are shown. What cannot be varied on this machine is "not tried".

    Exit status 1 when a template differs, a build fails, or a variation that --variations names is not tried.

    \b
    Examples:
      builder rebuild-check recipes/smoke
      builder rebuild-check recipes/smoke --variations path,user,future,umask
      builder rebuild-check recipes/vllm-blackwell --variations user+path+future,docker
    """
    names = _names(variations)
    become_root()
    loaded, lock = locked(recipe, variant)
    store = Store(default_root())
    blobs = building.blobs(building.plan(loaded, lock, KINDS))
    missing = [blob for blob in blobs if not store.has(blob)]
    if missing:
        hint = f"run `builder fetch {recipe}`"
        raise BuilderError(f"{len(missing)} of the locked files are not in the store", where=recipe, hint=hint)
    project = project_folder(loaded)
    wanted = [*blobs, *(blob for blob in tool_blobs() if store.has(blob))]
    job = Job(project, loaded.directory.resolve(), loaded.variant, wanted, store)
    progress = console.progress(as_json)
    linux.unshare(linux.CLONE_NEWNS)
    linux.make_private("/")
    with progress.task("the template to compare with"):
        template = reference(job)
    outcomes: list[Outcome] = []
    with _workplace(store, keep) as folder:
        for name in names:
            with progress.task(name):
                outcomes.append(rebuild(job, name, template, folder, keep=keep is not None))
            progress.say(f"{name}: {outcomes[-1].state.value}")
    _report(template, outcomes, as_json)
    bad = {State.DIFFERENT, State.FAILED, *([State.NOT_TRIED] if variations else [])}
    return 1 if any(outcome.state in bad for outcome in outcomes) else 0


def _names(variations: str | None) -> Sequence[str]:
    if variations is None:
        return list(VARIATIONS)
    names = list(dict.fromkeys(filter(None, variations.split(","))))
    unknown = [part for name in names for part in name.split("+") if part not in VARIATIONS]
    if unknown or not names:
        what = f"there is no variation {unknown[0]!r}" if unknown else "no variation is named"
        raise UsageError(what, where="--variations", hint=f"take some of {', '.join(VARIATIONS)}")
    return names


@contextmanager
def _workplace(store: Store, keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with store.scratch() as folder:
            yield folder
    else:
        hint = "name a new folder with --keep"
        try:
            keep.mkdir(parents=True, exist_ok=True)
            is_empty = not any(keep.iterdir())
        except OSError as error:
            raise UsageError(error.strerror or str(error), where=keep, hint=hint) from error
        if not is_empty:
            raise UsageError("is not empty", where=keep, hint=hint)
        yield keep.resolve()


def _report(template: Path, outcomes: Sequence[Outcome], as_json: bool) -> None:
    sha256 = sha256_of(template)
    if as_json:
        told = [
            {
                "variation": outcome.variation,
                "state": outcome.state.value,
                "how": outcome.how,
                "sha256": outcome.sha256,
                "seconds": outcome.seconds,
                "stage": outcome.stage,
                "files": outcome.files,
                "shown": outcome.shown,
            }
            for outcome in outcomes
        ]
        console.print_json({"template": str(template), "sha256": sha256, "variations": told})
        return
    rows = [
        (outcome.variation, outcome.state.value, f"{outcome.seconds:.1f} s" if outcome.seconds else "", outcome.how)
        for outcome in outcomes
    ]
    console.print_table(("variation", "", "took", "how"), rows, right=("took",))
    for outcome in outcomes:
        if outcome.state is State.DIFFERENT:
            click.echo(f"\n{outcome.variation}: stage {outcome.stage} differs first, {len(outcome.files)} files")
            for path in outcome.files[:_FILES]:
                click.echo(f"  {shown(path)}")
            click.echo(outcome.shown)
    same = sum(outcome.state is State.SAME for outcome in outcomes)
    click.echo(f"{template}  {same} of {len(outcomes)} variations gave the same bytes\nsha256:{sha256}")
