"""Kind `cuda-wheels`: a CUDA toolkit from PyPI's `nvidia-*` wheels.

What a venv holds of it anyway is installed there and linked from the toolkit, file by file; wheels of a second set,
which no venv holds, are unpacked into it. It is found by the linker and by login shells (`builder.stage.cuda_env`);
systemd reads neither, so units get literal values from a `files` stage of the recipe.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from builder import tree
from builder.errors import BuilderError, UsageError
from builder.lock.model import Blob, Lock, Request, Wheel
from builder.recipe.keys import Key, Type
from builder.recipe.model import Recipe, Stage
from builder.sandbox.spec import Bind
from builder.stage import venv
from builder.stage.cuda_env import TARGET, write_cuda_environment
from builder.stage.cuda_tree import FOLDER_LINKS, Origin, layout, library_links, parts
from builder.stage.kind import Context, Inputs, Kind
from builder.stage.members import Members, unpack_command

_RUNTIME = re.compile(r"nvidia-cuda-runtime(-cu\d+)?")
_TARGET_RELEASE = re.compile(r"\d+\.\d+$")


def _requests(recipe: Recipe, stage: Stage) -> Sequence[Request]:
    names = filter(None, (stage.params["Venv"], stage.params["Extra"]))
    return tuple(venv.request(recipe.venv(name)) for name in names)


def _inputs(recipe: Recipe, stage: Stage, lock: Lock) -> Inputs:
    params = stage.params
    wheels = venv.select(recipe.venv(params["Venv"]), stage, lock, params["Only"], ())
    extra = venv.select(recipe.venv(params["Extra"]), stage, lock, (), ()) if params["Extra"] else ()
    installed = venv.inputs(recipe, stage, wheels)
    more = {"extra": venv.identities(extra), "target": params["Target"], "release": _release(stage, (*wheels, *extra))}
    return Inputs(
        params={**installed.params, **more},
        blobs=(*installed.blobs, *(wheel.blob for wheel in extra)),
        files=installed.files,
    )


def _release(stage: Stage, wheels: Sequence[Wheel]) -> str:
    """The CUDA release, which the runtime's wheel tells. Raises UsageError when `Target` claims another one."""
    where, target = f"stage {stage.name}", stage.params["Target"]
    runtime = next((wheel for wheel in wheels if _RUNTIME.fullmatch(wheel.name)), None)
    if runtime is None:
        raise UsageError("takes no nvidia-cuda-runtime wheel, which tells the CUDA release", where=where)
    claimed = _TARGET_RELEASE.search(target)
    if claimed and not f"{runtime.version}.".startswith(f"{claimed[0]}."):
        what = f"Target is {target}, and {runtime.name} is {runtime.version}"
        raise UsageError(what, where=where, hint="name the folder after the release that is in it")
    return runtime.version


def _build(context: Context) -> None:
    params = context.inputs.params
    _, *blobs = context.inputs.blobs
    count = len(params["wheels"])
    venv.install(context, params, blobs[:count])
    site_packages, place = _site_packages(context, params["path"])
    unpacked = [_unpack(context, blob) for blob in blobs[count:]]
    files = layout(chain(parts(place, site_packages), chain.from_iterable(parts(folder, None) for folder in unpacked)))
    archive = context.scratch / "toolkit.tar"
    with Members(archive, context.epoch) as members:
        _toolkit(members, params, files)
        for (name, _), folder in zip(params["extra"], unpacked, strict=True):
            for licence in _licences(folder):
                members.tree(licence, f"{params['target']}/share/doc/{name}/{licence.name}")
    inside = "/run/builder/toolkit.tar"
    context.run(unpack_command(inside), binds=(Bind(archive, inside),))
    write_cuda_environment(context, params["target"])


def _site_packages(context: Context, path: str) -> tuple[str, Path]:
    """The template path of the venv's only site-packages, and where the layer has it on disk."""
    library = context.lower(f"{path}/lib")
    names = [name for name in os.listdir(library) if name.startswith("python3.")] if library else []
    inside = f"{path}/lib/{names[0]}/site-packages" if len(names) == 1 else ""
    place = context.lower(inside) if inside else None
    if place is None:
        raise BuilderError(f"{path}/lib has no single python3.*/site-packages", where=f"stage {context.stage.name}")
    return inside, place


def _unpack(context: Context, blob: Blob) -> Path:
    folder = context.scratch / blob.filename
    tree.extract(context.blob(blob), folder)
    return folder


def _toolkit(members: Members, params: Mapping[str, Any], files: Mapping[str, Origin]) -> None:
    target = params["target"]
    for path, origin in files.items():
        place = f"{target}/{path}"
        if origin.installed is None:
            members.tree(origin.place, place)
        else:
            members.link(place, os.path.relpath(origin.installed, os.path.dirname(place)))
    for path, to in {**library_links(files), **FOLDER_LINKS}.items():
        members.link(f"{target}/{path}", to)
    members.file(f"{target}/version.json", _version_json(params).encode())


def _version_json(params: Mapping[str, Any]) -> str:
    """In the form of NVIDIA's installer, which build systems read; each part says that it is a wheel."""
    versions = {"cuda": {"name": "CUDA SDK, from wheels", "version": params["release"]}}
    for name, version in sorted([*params["wheels"], *params["extra"]]):
        versions[name] = {"name": f"wheel {name}", "version": version}
    return json.dumps(versions, indent=3) + "\n"


def _licences(folder: Path) -> Iterator[Path]:
    for pattern in ("*.dist-info/Licen[sc]e*", "*.dist-info/licenses/*", "*.dist-info/LICEN[SC]E*"):
        yield from (path for path in sorted(folder.glob(pattern)) if path.is_file())


KIND = Kind(
    name="cuda-wheels",
    version=1,
    help="A CUDA toolkit from NVIDIA's wheels: links to what a venv holds of it, and the files of further wheels.",
    keys=(
        venv.VENV,
        Key("Only", Type.TEXTS, "The venv's wheels to install and link, as in `wheels`.", default=("nvidia-*",)),
        Key("Extra", Type.TEXT, "Name of a [[Venv]] whose wheels are unpacked into Target.", default="", refers="Venv"),
        TARGET,
    ),
    requests=_requests,
    inputs=_inputs,
    build=_build,
)
