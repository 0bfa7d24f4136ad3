"""Kind `source`: a locked source archive built by scripts of the recipe, with the tools of the layers below."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from builder import tree
from builder.errors import BuilderError, UsageError
from builder.lock.model import Lock, Request
from builder.recipe.keys import Key, Type
from builder.recipe.model import Recipe, Stage
from builder.sandbox.spec import Bind
from builder.stage import entries
from builder.stage.kind import Context, Inputs, Kind
from builder.stage.members import Members, unpack_command, wrong_path

_INSIDE = "/run/builder"
_FOLDERS = {"SRCDIR": "src", "BUILDDIR": "build", "DESTDIR": "dest"}


def _requests(recipe: Recipe, stage: Stage) -> Sequence[Request]:
    return (entries.request(recipe, stage.params["Source"]),)


def _inputs(recipe: Recipe, stage: Stage, lock: Lock) -> Inputs:
    scripts = stage.params["BuildScripts"]
    if not scripts:
        raise UsageError("has no BuildScripts", where=f"stage {stage.name}")
    return Inputs(
        params=dict(stage.params),
        blobs=(entries.locked(recipe, lock, stage.params["Source"]),),
        files={name: entries.script(recipe, name) for name in scripts},
    )


def _build(context: Context) -> None:
    """Run the scripts, then keep what they put below $DESTDIR and nothing else.

    Raises BuilderError when that is nothing, or lies outside of `Target`.
    """
    params = context.inputs.params
    folders = {name: context.scratch / name for name in _FOLDERS.values()}
    (blob,) = context.inputs.blobs
    tree.extract(context.blob(blob), context.scratch / "unpacked")
    try:
        os.rename(_top(context.scratch / "unpacked"), folders["src"])
        for name in ("build", "dest"):
            folders[name].mkdir()
            folders[name].chmod(0o755)
    except OSError as error:
        raise _failed(error, context.scratch) from error
    _run_scripts(context, folders)
    _empty(context.upper)
    archive = context.scratch / "dest.tar"
    with Members(archive, context.epoch) as members:
        members.tree(_result(context, folders["dest"]), params["Target"])
    inside = f"{_INSIDE}/dest.tar"
    context.run(unpack_command(inside), binds=(Bind(archive, inside),))


def _run_scripts(context: Context, folders: dict[str, Path]) -> None:
    params = context.inputs.params
    places = {variable: f"{_INSIDE}/{name}" for variable, name in _FOLDERS.items()}
    env = {
        **params["Environment"],
        **places,
        **{f"CHROOT_{variable}": place for variable, place in places.items()},
        "TARGET": params["Target"],
    }
    binds = [Bind(place, f"{_INSIDE}/{name}", writable=True) for name, place in folders.items()]
    for name in params["BuildScripts"]:
        script = Bind(context.inputs.files[name], f"{_INSIDE}/scripts/{Path(name).name}")
        context.run((script.target,), binds=(*binds, script), env=env, cwd=places["SRCDIR"])


def _top(unpacked: Path) -> Path:
    """The one folder that an archive of sources holds, else the archive's own top."""
    names = os.listdir(unpacked)
    only = unpacked / names[0] if len(names) == 1 else unpacked
    return only if only.is_dir() and not only.is_symlink() else unpacked


def _empty(folder: Path) -> None:
    """Forget what the scripts changed in the template itself."""
    try:
        for member in os.scandir(folder):
            if member.is_dir(follow_symlinks=False):
                shutil.rmtree(member.path)
            else:
                os.unlink(member.path)
        for name in os.listxattr(folder):
            os.removexattr(folder, name)
    except OSError as error:
        raise _failed(error, folder) from error


def _result(context: Context, dest: Path) -> Path:
    """The folder below `dest` that becomes `Target`."""
    target, where = context.inputs.params["Target"], f"stage {context.stage.name}"
    hint = f"install below $DESTDIR{target}"
    result = dest.joinpath(*_names(target))
    for path in _outside(dest, _names(target)):
        raise BuilderError(f"the scripts installed {path}, outside of Target {target}", where=where, hint=hint)
    if not result.is_dir() or not any(result.iterdir()):
        raise BuilderError(f"the scripts installed nothing below {target}", where=where, hint=hint)
    return result


def _outside(dest: Path, names: Sequence[str]) -> Iterator[str]:
    """Members of `dest` that are neither the folder `names` nor on the way to it."""
    here = dest
    for name in names:
        if here.is_symlink() or not here.is_dir():
            if here.is_symlink() or here.exists():
                yield f"/{here.relative_to(dest)}"
            return
        yield from (f"/{(here / other).relative_to(dest)}" for other in sorted(os.listdir(here)) if other != name)
        here = here / name
    if here.is_symlink() or here.is_file():
        yield f"/{here.relative_to(dest)}"


def _names(path: str) -> list[str]:
    return [name for name in path.split("/") if name]


def _failed(error: OSError, place: Path) -> BuilderError:
    return BuilderError(error.strerror or str(error), where=error.filename or place)


def _wrong_source(value: Any) -> str | None:
    return None if re.fullmatch(r"url:[^:]+", value) else "must be url:NAME, a [[Url]]"


def _wrong_environment(value: Any) -> str | None:
    for name in value:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            return f"{name!r} is no name of a variable"
        if name in (*_FOLDERS, "TARGET", "SOURCE_DATE_EPOCH") or name.startswith("CHROOT_"):
            return f"{name} is set by the builder"
    return None


def _wrong_target(value: Any) -> str | None:
    return wrong_path(value) or (None if _names(value) else "must be a folder of the template, not its root")


KIND = Kind(
    name="source",
    version=1,
    help="What the recipe's scripts build from a locked source archive, offline, with what the layers below have.",
    keys=(
        Key("Source", Type.TEXT, "url:NAME: the archive.", required=True, is_file=True, check=_wrong_source),
        Key(
            "BuildScripts",
            Type.TEXTS,
            "Programs of the recipe, run in $SRCDIR; they build in $BUILDDIR and install below $DESTDIR$TARGET.",
            is_file=True,
            mkosi="Content",
        ),
        Key("Environment", Type.TABLE, "Variables for the scripts.", check=_wrong_environment),
        Key(
            "Target",
            Type.TEXT,
            "The folder of the template for the result; anything else in $DESTDIR is an error.",
            required=True,
            check=_wrong_target,
        ),
    ),
    requests=_requests,
    inputs=_inputs,
    build=_build,
)
