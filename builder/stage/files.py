"""Kind `files`: what a recipe itself brings: files, templates, users, units, links, modes, scripts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from builder import tree
from builder.lock.model import Lock, Request
from builder.recipe.keys import Key, Type
from builder.recipe.model import Recipe, Stage
from builder.recipe.tables import source
from builder.sandbox.spec import Bind
from builder.stage import debs, entries, templates, users
from builder.stage.kind import Context, Inputs, Kind
from builder.stage.members import Members, unpack_command, wrong_path

_ARCHIVE = re.compile(r"\.(tar|tar\.(gz|xz|zst)|tgz|txz|tzst|zip)$")
_UNIT = re.compile(r"[A-Za-z0-9:_.\\@-]+\.(service|socket|timer|mount|automount|swap|path|target|slice|device)")
_MODE = re.compile(r"(?P<mode>0?[0-7]{3,4})( (?P<owner>[A-Za-z0-9_.-]+:[A-Za-z0-9_.-]+))?")


def _requests(recipe: Recipe, stage: Stage) -> Sequence[Request]:
    """The `[[Url]]` tables that ExtraTrees names."""
    return [entries.request(recipe, entry) for entry in stage.params["ExtraTrees"] if entries.is_url(entry)]


def _inputs(recipe: Recipe, stage: Stage, lock: Lock) -> Inputs:
    """All of the stage's settings, its locked archives, and the files that it takes from the recipe's folder.

    Raises UsageError for settings that contradict each other, BuilderError when the lock lacks a file.
    """
    params = stage.params
    where = f"stage {stage.name}"
    users.check(params["Users"], where)
    templates.render([entries.file(recipe, entry) for entry in params["Templates"]], params["Values"])
    copied = [entry for entry in params["ExtraTrees"] if not entries.is_url(entry)]
    taken = {source(entry): entries.file(recipe, entry) for entry in (*copied, *params["Templates"])}
    scripts = {name: entries.script(recipe, name) for name in params["PostInstallationScripts"]}
    return Inputs(
        params=dict(params),
        blobs=tuple(entries.locked(recipe, lock, entry) for entry in params["ExtraTrees"] if entries.is_url(entry)),
        files={**taken, **scripts},
    )


def _build(context: Context) -> None:
    """Lay the recipe's files over the template, then run what changes it from inside, in the order of `KIND.keys`.

    Raises BuilderError.
    """
    params = context.inputs.params
    archive = context.scratch / "members.tar"
    with Members(archive, context.epoch) as members:
        _extra_trees(context, members)
        _templates(context, members)
        for path, target in params["Links"].items():
            members.link(path, target)
        _masks(context, members)
    inside = "/run/builder/members.tar"
    context.run(unpack_command(inside), binds=(Bind(archive, inside),))
    archive.unlink()
    for argv in _changes(params):
        context.run(argv, env={"SYSTEMD_OFFLINE": "1"})
    if params["Users"]:
        debs.date_passwords(context.upper, context.epoch)
    _scripts(context)
    if params["RemoveFiles"]:
        context.run(("sh", "-c", "IFS=; for glob; do rm -rf -- $glob; done", "sh", *params["RemoveFiles"]))


def _extra_trees(context: Context, members: Members) -> None:
    blobs = iter(context.inputs.blobs)
    for number, entry in enumerate(context.inputs.params["ExtraTrees"]):
        target = entries.target(entry)
        if entries.is_url(entry):
            blob = next(blobs)
            place, name = context.blob(blob), blob.filename
        else:
            place = context.inputs.files[source(entry)]
            name = Path(source(entry)).name
        if place.is_file() and _ARCHIVE.search(name):
            unpacked = context.scratch / f"archive-{number}"
            tree.extract(place, unpacked)
            members.tree(unpacked, target, keep_times=True)
        elif target.endswith("/") and not place.is_dir():
            members.tree(place, target + name)
        else:
            members.tree(place, target)


def _templates(context: Context, members: Members) -> None:
    params = context.inputs.params
    places = [context.inputs.files[source(entry)] for entry in params["Templates"]]
    texts = templates.render(places, params["Values"])
    for entry, place, text in zip(params["Templates"], places, texts, strict=True):
        members.file(entries.target(entry), text.encode(), executable=bool(place.stat().st_mode & 0o100))


def _masks(context: Context, members: Members) -> None:
    masks = context.inputs.params["Masks"]
    for mask in masks:
        members.link(f"/etc/systemd/system/{mask['Unit']}", "/dev/null")
    if masks:
        lines = [f"{mask['Unit']}: {mask['Reason']}\n" for mask in masks]
        members.file(f"/usr/share/doc/builder/masked-units/{context.stage.name}", "".join(lines).encode())


def _changes(params: Any) -> Iterator[tuple[str, ...]]:
    """Commands for what only the template's own tools should change."""
    yield from users.commands(params["Users"])
    if params["EnableUnits"]:
        yield ("systemctl", "enable", "--", *params["EnableUnits"])
    for path, wanted in params["Modes"].items():
        mode, _, owner = wanted.partition(" ")
        if owner:
            yield ("chown", "--", owner, path)
        yield ("chmod", "--", mode, path)


def _scripts(context: Context) -> None:
    for name in context.inputs.params["PostInstallationScripts"]:
        place = context.inputs.files[name]
        inside = f"/run/builder/scripts/{Path(name).name}"
        context.run((inside, "final"), binds=(Bind(place, inside),), env={"PYTHONDONTWRITEBYTECODE": "1"})


def _each(check: Callable[[str], str | None]) -> Callable[[Any], str | None]:
    """A check of a list or table from one of its texts (a table's names)."""
    return lambda value: next((f"{text!r} {wrong}" for text in value if (wrong := check(text)) is not None), None)


def _wrong_unit(unit: str) -> str | None:
    return None if _UNIT.fullmatch(unit) else "must be the full name of a systemd unit, such as ssh.service"


def _wrong_modes(value: Any) -> str | None:
    for path, wanted in value.items():
        if (wrong := wrong_path(path)) is not None:
            return f"{path!r} {wrong}"
        if not _MODE.fullmatch(wanted):
            return f'{path!r} must be set to a mode such as "0750", or "0750 user:group"'
    return None


def _wrong_template(entry: str) -> str | None:
    if ":" not in entry or entries.is_url(entry):
        return "must be SOURCE:TARGET"
    return wrong_path(entries.target(entry))


KIND = Kind(
    name="files",
    version=1,
    help="Files and templates of the recipe, users, units, links, modes and scripts.",
    keys=(
        Key(
            "ExtraTrees",
            Type.TEXTS,
            "SOURCE:TARGET, or url:NAME:TARGET for a locked [[Url]]: a folder, a file, or an archive to unpack.",
            is_file=True,
            mkosi="Content",
            check=_each(lambda entry: wrong_path(entries.target(entry))),
        ),
        Key(
            "Templates",
            Type.TEXTS,
            "SOURCE:TARGET: text files in which @NAME@ stands for a value of Values.",
            is_file=True,
            check=_each(_wrong_template),
        ),
        Key("Values", Type.TABLE, "The values of Templates; each must be used."),
        Key("Links", Type.TABLE, "Symbolic links: path to target.", check=_each(wrong_path)),
        Key(
            "Masks",
            Type.TABLES,
            "Units of systemd that must never start.",
            keys=(
                Key("Unit", Type.TEXT, "The unit's full name.", required=True, check=_wrong_unit),
                Key("Reason", Type.TEXT, "Why; kept in /usr/share/doc/builder/masked-units.", required=True),
            ),
        ),
        users.USERS,
        Key("EnableUnits", Type.TEXTS, "Units of systemd to enable.", check=_each(_wrong_unit)),
        Key("Modes", Type.TABLE, 'Path to mode, "0750", or "0750 user:group".', check=_wrong_modes),
        Key(
            "PostInstallationScripts",
            Type.TEXTS,
            "Programs of the recipe, run in the template as root with SOURCE_DATE_EPOCH and no network.",
            is_file=True,
            mkosi="Content",
        ),
        Key(
            "RemoveFiles",
            Type.TEXTS,
            "Files and folders to remove last, as globs.",
            mkosi="Content",
            check=_each(wrong_path),
        ),
    ),
    requests=_requests,
    inputs=_inputs,
    build=_build,
)
