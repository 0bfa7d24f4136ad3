"""`builder models`: bring a profile's model to a host, and look whether it is still as it came."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from builder import console
from builder.commands.common import json_option, lock_folder
from builder.deploy import models as model_files
from builder.deploy import profile as profiles
from builder.deploy.channel import Local
from builder.deploy.host import open_host
from builder.deploy.hub import Access
from builder.deploy.models import Pinned, Place
from builder.deploy.profile import Profile
from builder.deploy.shell import Shell
from builder.errors import BuilderError, UsageError
from builder.recipe import load
from builder.stage import KINDS

F = TypeVar("F", bound=Callable[..., Any])


def _shared(command: F) -> F:
    """PROFILE, and where its model is."""
    for option in (
        json_option,
        click.option(
            "--host",
            "where",
            metavar="HOST",
            help="Another machine, ssh:[USER@]HOST[:PORT]; this one when left out.",
        ),
        click.option(
            "--to",
            default="/srv/models",
            show_default=True,
            metavar="FOLDER",
            help="The host's folder of models, in which the model has one of its own.",
        ),
        click.option(
            "--recipe",
            type=click.Path(path_type=Path, exists=True),
            help="Recipe of the profile; the one here that has it when left out.",
        ),
        click.argument("profile"),
    ):
        command = option(command)
    return command


@click.group()
def models() -> None:
    """Bring models to a host, every file by its sha256, and look at them again.

    \b
    Example:
      builder models fetch awq
    """


@models.command()
@_shared
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File with a token of the model hub; else $HF_TOKEN, else what `hf auth login` has kept.",
)
@click.option("--update", is_flag=True, help="Take the newest commit, not the one in the lock.")
def fetch(
    profile: str, recipe: Path | None, to: str, where: str | None, token_file: Path | None, update: bool, as_json: bool
) -> None:
    """Fetch the model of PROFILE into a folder of the host's folder of models.

    Its commit and the sha256 of each file go to locks/RECIPE/models.toml, and beside the folder. What was cut short
    goes on where it stopped. $HF_ENDPOINT names another hub than the public one.

    \b
    Examples:
      builder models fetch awq --to /srv/models
      builder models fetch fp8 --host ssh:root@pve --token-file ~/hub-token
    """
    made, lock = _profile(profile, recipe)
    progress = console.progress(as_json)
    token = profiles.secrets.read(None, token_file, os.environ).token
    known = None if update else model_files.read_lock(lock).get(made.model.repository)
    place = _place(made, to, where)
    pinned = model_files.fetch(
        made, place, known, Access(token=token), lambda pinned: model_files.write_lock(lock, pinned), progress
    )
    said = model_files.notes(made, place)
    if as_json:
        console.print_json({**_json(made, place, pinned), "notes": list(said)})
        return
    for line in said:
        click.echo(f"{made.model.repository}: {line}", err=True)
    size = console.human(sum(size for size, _ in pinned.files.values()))
    click.echo(f"{place.folder}: {len(pinned.files)} files, {size}, commit {pinned.revision[:12]}")


@models.command()
@_shared
def verify(profile: str, recipe: Path | None, to: str, where: str | None, as_json: bool) -> None:
    """Read every file of PROFILE's model, and name each that is damaged, missing or extra.

    Exits 1 when there is one.

    \b
    Example:
      builder models verify awq --host ssh:root@pve
    """
    made, lock = _profile(profile, recipe)
    pinned = model_files.read_lock(lock).get(model_files.repository_of(made))
    if pinned is None:
        hint = f"run `builder models fetch {profile}`"
        raise BuilderError(f"the model of profile {profile} is not pinned", where=lock, hint=hint)
    if made.model.revision not in (None, pinned.revision):
        hint = f"run `builder models fetch {profile}`"
        raise BuilderError(
            f"has commit {pinned.revision}, and the profile {made.model.revision}", where=lock, hint=hint
        )
    place = _place(made, to, where)
    with console.progress(as_json).task(f"verify {place.folder}"):
        faults = model_files.verify(place, pinned)
    if as_json:
        console.print_json({**_json(made, place, pinned), "faults": [vars(fault) for fault in faults]})
    else:
        for fault in faults:
            click.echo(f"{place.folder}/{ascii(fault.path)[1:-1]}: {fault.what}")
        click.echo(f"{place.folder}: {len(pinned.files)} files, {len(faults)} faults")
    if faults:
        sys.exit(1)


def _profile(name: str, recipe: Path | None) -> tuple[Profile, Path]:
    """The profile, and where its recipe's models are pinned."""
    found = load(recipe or profiles.find(name), KINDS)
    return profiles.load(found.directory, name), lock_folder(found) / model_files.LOCK


def _place(made: Profile, to: str, where: str | None) -> Place:
    host = open_host(where) if where else None
    if host is None or not host.capabilities.remote:
        return Place(Shell(Local()), model_files.folder_of(made.model, os.path.abspath(to)))
    if not to.startswith("/"):
        raise UsageError(f"--to is {to!a}", hint=f"give an absolute path on {host.name}")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "builder-models"
    return Place(host.shell, model_files.folder_of(made.model, to), cache / made.model.repository.replace("/", "--"))


def _json(made: Profile, place: Place, pinned: Pinned) -> dict[str, Any]:
    files = {path: {"size": size, "sha256": digest} for path, (size, digest) in pinned.files.items()}
    return {
        "profile": made.name,
        "repository": pinned.repository,
        "revision": pinned.revision,
        "folder": place.folder,
        "files": files,
    }
