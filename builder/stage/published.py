"""What NVIDIA publishes, as `builder/data` records it: URLs with sha256 and size, so that a lock needs no download."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from builder.errors import BuilderError, UsageError
from builder.lock.model import Blob, Lock, UrlRequest
from builder.recipe.model import Stage

_REDIST = "cuda-redist-"


@dataclass(frozen=True)
class Component:
    """One component of a CUDA release."""

    name: str  # cuda_nvcc
    title: str  # CUDA NVCC
    version: str
    request: UrlRequest


@cache
def drivers() -> Mapping[str, UrlRequest]:
    """The known driver packages for x86_64, by version."""
    known = _read("nvidia-drivers.json")["drivers"]
    return {
        version: UrlRequest(f"nvidia-driver-{version}", entry["url"], entry["sha256"], entry["size"])
        for version, entry in known.items()
    }


def driver(version: str, where: str) -> UrlRequest:
    """The package of this driver. Raises UsageError, with `where` and those known of its branch, for another one."""
    known = drivers()
    if version not in known:
        branch = [each for each in known if each.partition(".")[0] == version.partition(".")[0]]
        raise UsageError(
            f"no published sha256 of driver {version!a} is known",
            where=where,
            hint=f"known are {', '.join(branch or known)}; docs/nvidia.md says how to add one",
        )
    return known[version]


@cache
def releases() -> tuple[str, ...]:
    """The known CUDA releases, such as 12.8.1."""
    folder = resources.files("builder") / "data"
    names = [file.name for file in folder.iterdir() if file.name.startswith(_REDIST)]
    return tuple(sorted(name[len(_REDIST) : -len(".json")] for name in names))


@cache
def components(release: str) -> Mapping[str, Component]:
    """The redistributable components of a known release for x86_64, by name."""
    manifest = _read(f"{_REDIST}{release}.json")
    return {
        name: Component(
            name=name,
            title=entry["name"],
            version=entry["version"],
            request=UrlRequest(
                f"cuda-{release}-{name}", manifest["base_url"] + entry["relative_path"], entry["sha256"], entry["size"]
            ),
        )
        for name, entry in manifest["components"].items()
    }


def locked(lock: Lock, stage: Stage, requests: Iterable[UrlRequest]) -> tuple[Blob, ...]:
    """The files of `requests` in the lock. Raises BuilderError when it lacks one, or has other bytes for it."""
    blobs = []
    for request in requests:
        blob = lock.urls.get(request.id)
        if blob is None or blob.sha256 != request.sha256:
            what = "is not in the lock" if blob is None else "has another sha256 in the lock than the published one"
            raise BuilderError(f"{request.id} {what}", where=f"stage {stage.name}", hint="run `builder lock`")
        blobs.append(blob)
    return tuple(blobs)


def near(word: str, known: Iterable[str]) -> str:
    """The three of `known` that look most like `word`, nearest first, for an error's hint."""
    return ", ".join(difflib.get_close_matches(word, known, n=3, cutoff=0.0))


def _read(name: str) -> Any:
    return json.loads((resources.files("builder") / "data" / name).read_text("utf-8"))
