"""`builder lock`: pin every byte of a recipe, or say what the lock lacks."""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from builder import console
from builder import lock as locks
from builder.build.interpreter import base_runner
from builder.commands.common import json_option, lock_folder, recipe_argument, requests
from builder.errors import BuilderError, UsageError
from builder.lock import web
from builder.lock.debian import resolve_debs
from builder.lock.model import Blob, Deb, DebRequest, Lock, UrlRequest, VenvRequest, Wheel
from builder.lock.resolve import Resolvers, resolve
from builder.lock.resolvers import PIP_TOOLS, UV, WORKPLACE, Run
from builder.lock.urls import resolve_url
from builder.lock.wheels import JOBS, resolve_venv
from builder.progress import Progress
from builder.recipe import load
from builder.recipe.edit import Edit, set_text, written
from builder.recipe.model import Recipe
from builder.sandbox.spec import Bind
from builder.sandbox.userns import become_root
from builder.stage import KINDS, published
from builder.store import Store, default_root, fetch
from builder.store.tools import tool, tool_blobs


@click.command()
@recipe_argument
@click.option("--check", is_flag=True, help="Change nothing; exit 1 when recipe and lock disagree.")
@click.option("--diff", is_flag=True, help="Change nothing; show what --upgrade-all would, or the given --upgrade.")
@click.option("--upgrade", multiple=True, metavar="NAME", help="Let this package or file move, and no other.")
@click.option("--upgrade-all", is_flag=True, help="Take the newest of everything that the recipe allows.")
@click.option(
    "--driver",
    metavar="VERSION",
    help="Change the recipe's nvidia-runfile stage to this driver, one line of it, and lock that.",
)
@click.option(
    "--resolver",
    type=click.Choice(("pip-tools", "uv")),
    default="pip-tools",
    show_default=True,
    help="pip-tools: pip-compile confirms what uv resolves. uv: without, faster. Same bytes.",
)
@json_option
def lock(
    recipe: Path,
    check: bool,
    diff: bool,
    upgrade: tuple[str, ...],
    upgrade_all: bool,
    driver: str | None,
    resolver: str,
    as_json: bool,
) -> None:
    """Lock every input of RECIPE, all variants: name, version, URL, size and sha256, in locks/NAME.

    What is locked stays while it satisfies the recipe, so that a second run changes nothing.

    \b
    Examples:
      builder lock recipes/smoke
      builder lock recipes/smoke --check
      builder lock recipes/vllm-blackwell --diff --upgrade transformers
      builder lock recipes/vllm-cpu --resolver uv
      builder lock recipes/vllm-blackwell --driver 580.95.05
    """
    if check + diff > 1 or (check and (upgrade or upgrade_all)) or (upgrade and upgrade_all):
        raise UsageError("--check stands alone, --diff goes with --upgrade, --upgrade excludes --upgrade-all")
    if driver is not None and (check or diff):
        raise UsageError("--driver changes the recipe, --check and --diff change nothing", hint="leave one of them out")
    if check:
        _check(recipe, as_json)
        return
    edit = None if driver is None else _edit_driver(recipe, driver)
    moving = None if upgrade_all or (diff and not upgrade) else frozenset(upgrade)
    with written(edit) if edit else nullcontext():
        done = _lock(recipe, moving, resolver, console.progress(as_json), is_dry=diff)
    if as_json:
        console.print_json(_result(done, edit))
    else:
        _print(done, edit, is_dry=diff)


@dataclass(frozen=True)
class _Done:
    """A lock that was made."""

    folder: Path
    lock: Lock
    changes: tuple[locks.Change, ...]
    is_first: bool
    is_written: bool


def _lock(recipe: Path, moving: frozenset[str] | None, resolver: str, progress: Progress, *, is_dry: bool) -> _Done:
    """Lock the recipe, and write that unless `is_dry`; `moving` as `upgrade` of `lock.resolve`."""
    variants = _variants(recipe)
    folder = lock_folder(variants[0])
    asked = locks.collect(request for each in variants for request in requests(each))
    become_root()
    old = locks.read(folder, texts=False) if (folder / "lock.toml").exists() else None
    with _resolvers(variants, resolver, progress) as resolvers:
        new = resolve(variants[0].name, variants[0].distribution, asked, old, resolvers, upgrade=moving)
    changes = locks.diff(old or Lock(new.recipe, ""), new)
    return _Done(folder, new, tuple(changes), old is None, not is_dry and locks.write(new, folder))


def _edit_driver(recipe: Path, version: str) -> Edit:
    """The recipe with another version of the driver in its nvidia-runfile stage, whose sha256 must be published."""
    load(recipe, KINDS)
    published.driver(version, "--driver")
    return set_text(recipe, "nvidia-runfile", "Version", version)


def _print(done: _Done, edit: Edit | None, *, is_dry: bool) -> None:
    if edit:
        moved = f"{edit.old} is there already" if edit.old == edit.new else f"{edit.old} is now {edit.new}"
        click.echo(f"{edit.path}:{edit.line}: driver {moved}")
    if done.changes and (is_dry or not done.is_first):
        rows = [(change.kind, change.of, change.name, change.old or "-", change.new or "-") for change in done.changes]
        console.print_table(("kind", "of", "name", "old", "new"), rows)
    state = f"{len(done.changes)} changed" if done.changes else "written" if done.is_written else "unchanged"
    click.echo(f"{done.folder / 'lock.toml'}: {_counts(done.lock)} ({'new' if done.is_first else state})")


def _variants(path: Path) -> tuple[Recipe, ...]:
    """The recipe in each of its variants, the default one first. Raises UsageError when they differ in distribution."""
    first = load(path, KINDS)
    others = (load(path, KINDS, name) for name in first.variants if name != first.variant)
    variants = (first, *others)
    for other in variants:
        if other.distribution != first.distribution:
            raise UsageError(
                f"variant {other.variant} has another [Distribution], and one lock serves all variants",
                where=first.directory / "recipe.toml",
                hint="make it a recipe of its own",
            )
    return variants


def _check(path: Path, as_json: bool) -> None:
    variants = _variants(path)
    folder = lock_folder(variants[0])
    asked = locks.collect(request for each in variants for request in requests(each))
    mend = f"run `builder lock {shlex.quote(str(path))}`"
    try:
        held = locks.read(folder)
    except BuilderError as error:
        raise BuilderError(error.what, where=error.where, hint=mend) from error
    outdated = [*locks.stale(held, asked, variants[0].distribution), *locks.unasked(held, asked)]
    if as_json:
        console.print_json({"lock": str(folder / "lock.toml"), "stale": outdated, "mend": mend if outdated else None})
        if outdated:
            raise click.exceptions.Exit(1)
    elif outdated:
        raise BuilderError(f"not of this recipe: {', '.join(outdated)}", where=folder / "lock.toml", hint=mend)
    else:
        click.echo(f"{folder / 'lock.toml'}: holds ({_counts(held)})")


def _counts(lock: Lock) -> str:
    return ", ".join(f"{count} {what}" for what, count in _numbers(lock).items())


def _numbers(lock: Lock) -> dict[str, int]:
    return {
        "debs": sum(map(len, lock.debs.values())),
        "wheels": sum(map(len, lock.venvs.values())),
        "urls": len(lock.urls),
    }


def _result(done: _Done, edit: Edit | None) -> dict[str, Any]:
    line = {"path": str(edit.path), "line": edit.line, "old": edit.old, "new": edit.new} if edit else None
    return {
        "lock": str(done.folder / "lock.toml"),
        "written": done.is_written,
        "recipe_line": line,
        "changes": [asdict(change) for change in done.changes],
        **_numbers(done.lock),
    }


@contextmanager
def _resolvers(variants: Sequence[Recipe], resolver: str, progress: Progress) -> Iterator[Resolvers]:
    """The real resolvers; the base of a variant is built when the first command is run in it."""
    session = web.new_session(JOBS)
    owners = {
        request.id: each
        for each in reversed(variants)
        for request in requests(each)
        if isinstance(request, VenvRequest)
    }
    runs: dict[str, Run] = {}

    def debs(
        asked: Sequence[DebRequest], known: Mapping[str, Sequence[Deb]], upgrade: frozenset[str] | None
    ) -> Mapping[str, Sequence[Deb]]:
        return resolve_debs(variants[0].distribution, asked, known, upgrade=upgrade, progress=progress)

    def url(request: UrlRequest) -> Blob:
        return resolve_url(request, session, progress)

    with ExitStack() as stack:

        def venv(request: VenvRequest, lock: Lock, known: Sequence[Wheel], upgrade: Collection[str]) -> Sequence[Wheel]:
            recipe = owners[request.id]

            def run(argv: Sequence[str], *, env: Mapping[str, str], folder: Path) -> None:
                if recipe.variant not in runs:
                    runs[recipe.variant] = stack.enter_context(_run(recipe, lock, progress))
                runs[recipe.variant](argv, env=env, folder=folder)

            return resolve_venv(
                request,
                run=run,
                session=session,
                environ=os.environ,
                progress=progress,
                resolver=resolver,
                known=known,
                upgrade=upgrade,
            )

        yield Resolvers(debs, venv, url)


@contextmanager
def _run(recipe: Recipe, lock: Lock, progress: Progress) -> Iterator[Run]:
    """Commands in the locked base of `recipe`, with the locked tools in their places."""
    store = Store(default_root())
    if missing := [blob for blob in tool_blobs() if not store.has(blob)]:
        fetch(store, missing, progress=progress)
    tools = [Bind(tool(store, "uv"), UV), Bind(tool(store, "pip-tools"), PIP_TOOLS)]
    with base_runner(recipe, lock, store, KINDS, progress) as base:

        def run(argv: Sequence[str], *, env: Mapping[str, str], folder: Path) -> None:
            base(argv, env=env, binds=[Bind(folder, WORKPLACE, writable=True), *tools], cwd=WORKPLACE)

        yield run
