"""Kind `nvidia-redist`: a CUDA toolkit put together from NVIDIA's redistributable archives.

Each archive has one top folder with `bin`, `include`, `lib`, `nvvm`, ... and its licence. Merged, they make the tree
that NVIDIA's own installer makes: `include` and `lib` belong to a target and lie in `targets/x86_64-linux`, with
`include` and `lib64` as links to them.
"""

from __future__ import annotations

import filecmp
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from builder import tree
from builder.errors import BuilderError, UsageError
from builder.lock.model import Lock, UrlRequest
from builder.recipe.keys import Key, Type
from builder.recipe.model import Recipe, Stage
from builder.stage import published, upper
from builder.stage.cuda_env import TARGET, write_cuda_environment
from builder.stage.kind import Context, Inputs, Kind
from builder.stage.published import Component

_PLATFORM = "targets/x86_64-linux"
_MOVED = {"include": f"{_PLATFORM}/include", "lib": f"{_PLATFORM}/lib", "lib64": f"{_PLATFORM}/lib"}
_LINKS = {"include": f"{_PLATFORM}/include", "lib64": f"{_PLATFORM}/lib"}
_CUPTI = "cuda_cupti"
_CUPTI_MOVED = {"doc": "extras/CUPTI/doc", "samples": "extras/CUPTI/samples"}
_CUPTI_LINKS = {"extras/CUPTI/include": "../../include", "extras/CUPTI/lib64": "../../lib64"}  # where profilers look


def _components(stage: Stage) -> tuple[Component, ...]:
    """The stage's components, sorted: their order in the recipe means nothing."""
    release = stage.params["Release"]
    if release not in published.releases():
        raise UsageError(
            f"CUDA {release} is not known",
            where=f"stage {stage.name}",
            hint=f"known: {', '.join(published.releases())}",
        )
    known = published.components(release)
    names = sorted(set(stage.params["Components"]))
    for name in names:
        if name not in known:
            raise UsageError(
                f"CUDA {release} has no component {name}",
                where=f"stage {stage.name}",
                hint=f"the nearest are {published.near(name, known)}",
            )
    return tuple(known[name] for name in names)


def _requests(recipe: Recipe, stage: Stage) -> Sequence[UrlRequest]:
    return tuple(component.request for component in _components(stage))


def _inputs(recipe: Recipe, stage: Stage, lock: Lock) -> Inputs:
    components = _components(stage)
    params = {
        "Release": stage.params["Release"],
        "Target": stage.params["Target"],
        "components": {component.name: [component.title, component.version] for component in components},
    }
    return Inputs(params=params, blobs=published.locked(lock, stage, (each.request for each in components)))


def _build(context: Context) -> None:
    params = context.inputs.params
    target = params["Target"]
    names = list(params["components"])
    unpacked = {name: context.scratch / name for name in names}
    archives = [context.blob(blob) for blob in context.inputs.blobs]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda archive, dest: tree.extract(archive, dest, strip=1), archives, unpacked.values()))
    root = upper.folder(context, target)
    owners: dict[str, str] = {}
    try:
        for name, folder in unpacked.items():
            _merge(name, folder, root, owners)
    except OSError as error:
        raise BuilderError(error.strerror or str(error), where=error.filename or root) from error
    for path, to in {**_LINKS, **(_CUPTI_LINKS if _CUPTI in names else {})}.items():
        upper.link(context, f"{target}/{path}", to)
    upper.write(context, f"{target}/version.json", _version_json(params))
    write_cuda_environment(context, target)


def _merge(name: str, folder: Path, root: Path, owners: dict[str, str]) -> None:
    """Move the members of one unpacked component into `root`; `owners` says which component brought what is there."""
    for member in _files(folder):
        relative = member.relative_to(folder)
        path = _path(name, relative, os.readlink(member) if member.is_symlink() else None)
        place = root / path
        if path in owners:
            if not _same(member, place):
                what = f"{path} differs between {owners[path]} and {name}"
                raise BuilderError(what, where="Components", hint="leave one of them out")
            continue
        owners[path] = name
        _folder(place.parent, root, name)
        os.rename(member, place)


def _files(folder: Path) -> Iterator[Path]:
    """All files and links below `folder`, sorted."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir(follow_symlinks=False):
            yield from _files(Path(entry.path))
        else:
            yield Path(entry.path)


def _path(name: str, member: Path, link: str | None) -> str:
    """Where a member of the component `name` lies in the toolkit; `link` is its target when it is a link.

    Files at the top are the component's licence and notes.
    """
    top, *rest = member.parts
    if not rest:
        if link is not None:
            raise BuilderError(f"{name}: {top} is a link where a folder is expected", where="Components")
        return f"share/doc/{name}/{top}"
    moved = {**_MOVED, **(_CUPTI_MOVED if name == _CUPTI else {})}
    if link is not None and top in moved and not os.path.normpath(member.parent / link).startswith(f"{top}/"):
        raise BuilderError(f"{name}: {member} links out of {top}, which is moved", where="Components")
    return "/".join((moved.get(top, top), *rest))


def _folder(folder: Path, root: Path, name: str) -> None:
    if folder == root or (folder.is_dir() and not folder.is_symlink()):
        return
    _folder(folder.parent, root, name)
    try:
        folder.mkdir()
    except FileExistsError:
        what = f"{folder.relative_to(root)} is a folder in {name} and a file in another component"
        raise BuilderError(what, where="Components", hint="leave one of them out") from None
    folder.chmod(0o755)


def _same(one: Path, other: Path) -> bool:
    if one.is_symlink() or other.is_symlink():
        return one.is_symlink() and other.is_symlink() and os.readlink(one) == os.readlink(other)
    return filecmp.cmp(one, other, shallow=False) and one.stat().st_mode == other.stat().st_mode


def _version_json(params: Mapping[str, Any]) -> str:
    """What NVIDIA's installer writes at the toolkit's top, and build systems read."""
    versions = {"cuda": {"name": "CUDA SDK", "version": params["Release"]}}
    for name, (title, version) in sorted(params["components"].items()):
        versions[name] = {"name": title, "version": version}
    return json.dumps(versions, indent=3) + "\n"


KIND = Kind(
    name="nvidia-redist",
    version=2,
    help="A CUDA toolkit from NVIDIA's redistributable archives, with nvcc when the recipe names it.",
    keys=(
        Key("Release", Type.TEXT, "The CUDA release, such as 12.8.1.", required=True),
        Key("Components", Type.TEXTS, "The components to take, by the names of NVIDIA's manifest.", required=True),
        TARGET,
    ),
    requests=_requests,
    inputs=_inputs,
    build=_build,
)
