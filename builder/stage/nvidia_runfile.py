"""Kind `nvidia-runfile`: the userspace of NVIDIA's driver for computing, from its published package."""

from __future__ import annotations

from collections.abc import Sequence

from builder.errors import BuilderError
from builder.lock.model import Lock, UrlRequest
from builder.recipe.keys import Key, Type
from builder.recipe.model import Recipe, Stage
from builder.stage import published, runfile, upper
from builder.stage.cuda_env import update_linker_cache
from builder.stage.kind import Context, Inputs, Kind
from builder.stage.runfile import Item

LIBRARIES = "/usr/lib/x86_64-linux-gnu"
PROGRAMS = "/usr/bin"

_LIBRARIES = (
    "libcuda",
    "libcudadebugger",
    "libnvidia-cfg",  # for nvidia-persistenced
    "libnvidia-gpucomp",
    "libnvidia-ml",
    "libnvidia-nvvm",
    "libnvidia-nvvm70",
    "libnvidia-ptxjitcompiler",
    "libnvidia-tileiras",  # from 590 on
)
_PROGRAMS = (
    "nvidia-cuda-mps-control",
    "nvidia-cuda-mps-server",
    "nvidia-modprobe",
    "nvidia-persistenced",
    "nvidia-smi",
)
_FOLDERS = {
    **dict.fromkeys(_LIBRARIES, LIBRARIES),
    **dict.fromkeys(_PROGRAMS, PROGRAMS),
    "LICENSE": "/usr/share/doc/nvidia-driver",  # its terms: a copy goes along with the files
}
"""What is taken, by name without `.so` and what follows, and where it goes: libcuda, all that it and nvidia-smi may
load, and the programs that work in a container. The rest (kernel modules, X, GL, video, 32 bit, installer) is left."""

_OPENCL = {"libnvidia-opencl": LIBRARIES, "nvidia.icd": "/etc/OpenCL/vendors"}
_NEEDED = frozenset({"libcuda", "libnvidia-ml", "libnvidia-ptxjitcompiler", "nvidia-smi", "LICENSE"})
_MODE = 0o755  # nvidia-modprobe is setuid, for hosts: a container neither loads modules nor makes device nodes


def _requests(recipe: Recipe, stage: Stage) -> Sequence[UrlRequest]:
    return (published.driver(stage.params["Version"], f"stage {stage.name}"),)


def _inputs(recipe: Recipe, stage: Stage, lock: Lock) -> Inputs:
    params = {key: stage.params[key] for key in ("Version", "OpenCL")}
    return Inputs(params=params, blobs=published.locked(lock, stage, _requests(recipe, stage)))


def _build(context: Context) -> None:
    params = context.inputs.params
    folders = {**_FOLDERS, **_OPENCL} if params["OpenCL"] else _FOLDERS
    (blob,) = context.inputs.blobs
    package = context.scratch / "package"
    runfile.unpack(context.blob(blob), package, name=blob.filename)
    listed = runfile.manifest(package, params["Version"], name=blob.filename)
    wanted: dict[str, Item] = {}
    for item in listed:
        if _is_wanted(item, folders):
            path = f"{folders[_stem(item)]}/{item.path}"
            if path in wanted:
                what = f"line {item.line}: {item.path} is listed twice, on line {wanted[path].line} first"
                raise BuilderError(what, where=f"{blob.filename}: .manifest")
            wanted[path] = item
    missing = _NEEDED - {_stem(item) for item in wanted.values() if item.target is None}
    if missing:
        raise BuilderError(f"lists no {min(missing)}", where=f"{blob.filename}: .manifest")
    for path, item in wanted.items():
        if item.target is None:
            upper.move(context, runfile.source(package, item, name=blob.filename), path, item.mode & _MODE)
        elif f"{path.rpartition('/')[0]}/{item.target}" in wanted:
            upper.link(context, path, item.target)
        else:
            what = f"line {item.line}: {item.path} links to {item.target!a}, which is not installed"
            raise BuilderError(what, where=f"{blob.filename}: .manifest")
    update_linker_cache(context)


def _is_wanted(item: Item, folders: dict[str, str]) -> bool:
    """Whether it is taken: what lies in a folder of the package (`supported-gpus/LICENSE`) is another file."""
    return _stem(item) in folders and not item.is_compat32


def _stem(item: Item) -> str:
    return item.path.partition(".so")[0]


KIND = Kind(
    name="nvidia-runfile",
    version=2,
    help="The userspace of NVIDIA's driver for computing, from its .run package; no kernel module, no X, no GL.",
    keys=(
        Key(
            "Version",
            Type.TEXT,
            "The driver's version: that of the host's kernel module, such as 580.76.05.",
            required=True,
        ),
        Key("OpenCL", Type.BOOL, "Take the OpenCL library too.", default=False),
    ),
    requests=_requests,
    inputs=_inputs,
    build=_build,
)
