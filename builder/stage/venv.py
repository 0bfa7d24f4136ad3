"""Install a part of a venv's lock into its place in the template, offline and by hash."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from builder.errors import BuilderError, UsageError
from builder.lock.model import Blob, Lock, VenvRequest, Wheel
from builder.recipe.keys import Key, Type
from builder.recipe.model import Recipe, Stage, Venv
from builder.recipe.tables import did_you_mean
from builder.sandbox.spec import Bind
from builder.stage.kind import Context, Inputs
from builder.store.tools import tool_blobs

_INSIDE = "/run/builder"
_CHECK = Path(__file__).with_name("installed.py")
_TAKE = Path(__file__).with_name("taken.py")
_STARTUP_OR_CODE = (".py", ".pyc", ".pth")

VENV = Key("Venv", Type.TEXT, "Name of the [[Venv]] to install into.", required=True, refers="Venv")


def request(venv: Venv) -> VenvRequest:
    """What the lock is asked for: all of `venv`, whichever part a stage takes."""
    return VenvRequest(
        id=venv.lock_id,
        python=venv.python,
        requirements=venv.requirements,
        constraints=venv.constraints,
        overrides=venv.overrides,
        exclude_newer=venv.exclude_newer,
        index=venv.index,
    )


def select(venv: Venv, stage: Stage, lock: Lock, only: Sequence[str], excluded: Sequence[str]) -> tuple[Wheel, ...]:
    """The wheels of `venv` in the lock whose normalised name one pattern of `only` (none: all) and none of `excluded`
    matches (fnmatch), sorted by name.

    Raises UsageError for a pattern that matches no locked wheel, and BuilderError when the lock lacks the venv or
    what is left is nothing, or is no wheel but a source distribution.
    """
    where = f"stage {stage.name}"
    wheels = lock.venvs.get(venv.lock_id)
    if wheels is None:
        raise BuilderError(f"the lock has no [[Venv]] {venv.name}", where=where, hint="run `builder lock`")
    for pattern in (*only, *excluded):
        if not any(fnmatchcase(wheel.name, pattern) for wheel in wheels):
            hint = did_you_mean(pattern, [wheel.name for wheel in wheels])
            raise UsageError(f'no wheel of [[Venv]] {venv.name} is called "{pattern}"', where=where, hint=hint)
    taken = [
        wheel
        for wheel in sorted(wheels, key=lambda wheel: wheel.name)
        if (not only or _matches(wheel, only)) and not _matches(wheel, excluded)
    ]
    if not taken:
        raise UsageError(f"takes no wheel of [[Venv]] {venv.name}", where=where)
    for wheel in taken:
        if not wheel.blob.filename.endswith(".whl"):
            what = f"{wheel.name} {wheel.version} has no wheel, only {wheel.blob.filename}, and is not built here"
            raise BuilderError(what, where=where, hint="leave it out with Except, and build it in a `source` stage")
    return tuple(taken)


def _matches(wheel: Wheel, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(wheel.name, pattern) for pattern in patterns)


def inputs(recipe: Recipe, stage: Stage, wheels: Sequence[Wheel]) -> Inputs:
    """What the installation of `wheels` into the stage's venv depends on; the first blob is the installer's own.

    Raises UsageError when the venv has no place in the template.
    """
    venv = recipe.venv(stage.params["Venv"])
    if not venv.path:
        raise UsageError(f"[[Venv]] {venv.name} has no Path to install into", where=f"stage {stage.name}")
    return Inputs(
        params={"path": venv.path, "python": venv.python, "wheels": identities(wheels)},
        blobs=(_uv(), *(wheel.blob for wheel in wheels)),
        files={_CHECK.name: _CHECK},
    )


def _uv() -> Blob:
    (blob,) = tool_blobs("uv")
    return blob


def identities(wheels: Sequence[Wheel]) -> list[list[str]]:
    """Name and version of each, as JSON takes them."""
    return [[wheel.name, wheel.version] for wheel in wheels]


def install(context: Context, params: Mapping[str, Any], blobs: Sequence[Blob]) -> None:
    """Install the wheels `blobs` of `params` (of `inputs`, in the same order), checked and with bytecode.

    The first stage of a venv makes it. Raises BuilderError when the installed set is not the locked one, or two
    wheels bring the same file with different bytes.
    """
    path, python = params["path"], f"{params['path']}/bin/python"
    if context.lower(python) is None:
        context.run((params["python"], "-I", "-B", "-m", "venv", "--without-pip", path))
    lines = [
        f"{name}=={version} --hash=sha256:{blob.sha256}\n"
        for (name, version), blob in zip(params["wheels"], blobs, strict=True)
    ]
    requirements = write(context, "requirements.txt", "".join(lines))
    uv(
        context,
        ("--python", python, "--require-hashes", "--requirement", requirements.target),
        (requirements, *wheel_binds(context, blobs)),
        cache=f"{path}/.uv-cache",
    )
    wanted = write(context, "wheels.json", json.dumps(params["wheels"]))
    taken = _take_bytecode(context, params, python)
    check = Bind(_CHECK, f"{_INSIDE}/{_CHECK.name}")
    argv = (python, "-s", "-B", check.target, wanted.target, taken.target)
    context.run(argv, binds=(check, wanted, taken), env={"PYTHONHASHSEED": "0"})
    context.run(("rm", "-f", "--", f"{path}/.lock"))


def _take_bytecode(context: Context, params: Mapping[str, Any], python: str) -> Bind:
    """A JSON list of the modules whose bytecode was taken from this stage's earlier layer."""
    taken, before = write(context, "taken.json", "[]"), context.before()
    if before is None or any(before.facts["body"]["params"].get(name) != params[name] for name in ("path", "python")):
        return taken
    files = (entry for entry in before.index.entries if entry.type == "file" and entry.path.endswith(_STARTUP_OR_CODE))
    known = write(context, "known.json", json.dumps({f"/{entry.path}": entry.sha256 for entry in files}))
    take, earlier = Bind(_TAKE, f"{_INSIDE}/{_TAKE.name}"), Bind(before.tree, f"{_INSIDE}/earlier")
    argv = (python, "-s", "-B", take.target, earlier.target, known.target, taken.target)
    context.run(argv, binds=(take, earlier, known, replace(taken, writable=True)))
    return taken


def wheel_binds(context: Context, blobs: Sequence[Blob]) -> tuple[Bind, ...]:
    """The files of `blobs` under their own names, as an installer must see them: read-only mounts, no copies."""
    return tuple(Bind(context.blob(blob), f"{_INSIDE}/wheels/{blob.filename}") for blob in blobs)


def write(context: Context, name: str, text: str) -> Bind:
    """A file of `text`, to be bound into the next runs."""
    place = context.scratch / name
    try:
        place.write_text(text)
    except OSError as error:
        raise BuilderError(error.strerror or str(error), where=place) from error
    return Bind(place, f"{_INSIDE}/{name}")


def uv(context: Context, arguments: Sequence[str], binds: Sequence[Bind], *, cache: str) -> None:
    """Run the locked ``uv pip install`` with `arguments` over wheels bound by `wheel_binds`, and nothing else.

    `cache` is a folder that it may use, on the same file system as what it installs: files are unpacked there once,
    linked to their place, and the folder goes.
    """
    program = Bind(context.tool("uv"), f"{_INSIDE}/uv")
    wheels = f"{_INSIDE}/wheels"
    isolated = ("--offline", "--no-config", "--no-index", "--find-links", wheels, "--no-build", "--no-deps")
    env = {
        "UV_CACHE_DIR": cache,
        "UV_LINK_MODE": "hardlink",
        "UV_NO_INSTALLER_METADATA": "1",
        "UV_NO_PROGRESS": "1",
        "UV_PYTHON_DOWNLOADS": "never",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    context.run((program.target, "pip", "install", *isolated, *arguments), binds=(program, *binds), env=env)
    context.run(("rm", "-rf", "--", cache))
