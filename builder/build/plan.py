"""From a recipe and its lock to keys: what each stage's layer depends on, as canonical JSON."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from builder import canonical
from builder.errors import BuilderError
from builder.lock.model import Blob, Lock
from builder.recipe.model import Recipe, Stage
from builder.stage.kind import Inputs, Kind

LAYER_FORMAT = 3
"""Raised when capture itself changes what a layer holds: enters every key."""


@dataclass(frozen=True)
class Node:
    """One stage that will be built, with all that its key is made of but the layers below."""

    stage: Stage
    kind: Kind
    inputs: Inputs
    body: Mapping[str, Any]
    listing: Mapping[str, str]
    """Every copied file by its path in the recipe, with its digest: to name what changed."""
    over: tuple[int, ...]
    """The numbers of the nodes that this one sees, lowest first: the layers that it is built over."""

    def full_body(self, lower: Sequence[str]) -> dict[str, Any]:
        """The key's JSON over layers of the digests `lower`, which are those of `over`."""
        return {**self.body, "below": stack_digest(lower)}

    def key(self, lower: Sequence[str]) -> str:
        """The sha256 that names this stage's layer over layers of the digests `lower`."""
        return canonical.digest(self.full_body(lower))


def stack_digest(layers: Sequence[str]) -> str:
    """The digest of a stack of layers of these digests, lowest first: all of them count, not only the topmost."""
    return reduce(lambda below, layer: canonical.digest([below, layer]), layers, canonical.digest([]))


def plan(recipe: Recipe, lock: Lock, kinds: Mapping[str, Kind]) -> tuple[Node, ...]:
    """The stages to build, in order; skipped ones are left out.

    Raises BuilderError when the lock lacks an input, when an environment's wheel is in none of the stages that share
    it, or when a copied file cannot be read.
    """
    nodes: list[Node] = []
    for stage in recipe.stages:
        if stage.skip is None:
            nodes.append(_node(recipe, stage, lock, kinds[stage.kind], nodes))
    _check_taken(recipe, lock, nodes)
    return tuple(nodes)


def blobs(nodes: Sequence[Node]) -> tuple[Blob, ...]:
    """Every locked file that the stages take, once each, in order of first use."""
    return tuple({blob.sha256: blob for node in nodes for blob in node.inputs.blobs}.values())


def _check_taken(recipe: Recipe, lock: Lock, nodes: Sequence[Node]) -> None:
    """Refuse a wheel that was forgotten; an environment that a skipped stage shares is meant to be incomplete."""
    used = {blob.sha256 for node in nodes for blob in node.inputs.blobs}
    incomplete = {stage.params.get("Venv") for stage in recipe.stages if stage.skip is not None}
    for venv in recipe.venvs:
        wheels = lock.venvs.get(venv.lock_id, ())
        left = [wheel.name for wheel in wheels if wheel.blob.sha256 not in used]
        if left and len(left) < len(wheels) and venv.name not in incomplete:
            raise BuilderError(
                f"{len(left)} wheels of environment {venv.name} would be in no stage, {left[0]} first",
                where=recipe.directory / "recipe.toml",
                hint="take them into the Only, or out of the Except, of one of the stages that share the environment",
            )


def recipe_digest(recipe: Recipe, nodes: Sequence[Node]) -> str:
    """The digest of recipe, lock, copied files and kind versions: known before anything is built."""
    return canonical.digest(
        [recipe.full_name, recipe.version, recipe.compression_level, [[node.stage.name, node.body] for node in nodes]]
    )


def _node(recipe: Recipe, stage: Stage, lock: Lock, kind: Kind, earlier: Sequence[Node]) -> Node:
    inputs = kind.inputs(recipe, stage, lock)
    described = {name: _described(path) for name, path in sorted(inputs.files.items())}
    body = {
        "format": LAYER_FORMAT,
        "kind": kind.name,
        "version": kind.version,
        "params": dict(inputs.params),
        "blobs": [[blob.filename, blob.sha256] for blob in inputs.blobs],
        "files": {name: canonical.digest(each) for name, each in described.items()},
        "epoch": recipe.source_date_epoch,
    }
    listing = dict(pair for name, each in described.items() for pair in _listed(name, each))
    over = tuple(number for number, node in enumerate(earlier) if node.kind.name not in kind.unseen)
    return Node(stage, kind, inputs, body, listing, over)


def file_digest(path: Path) -> str:
    """The digest of a recipe's file or folder: types, names, bytes, link targets and the owner's x-bit, no more.

    Raises BuilderError naming what cannot be read, or is neither file, folder nor link.
    """
    return canonical.digest(_described(path))


def _described(path: Path) -> list[Any]:
    try:
        return _describe(path)
    except OSError as error:
        raise BuilderError(error.strerror or str(error), where=error.filename or path) from error


def _listed(name: str, described: list[Any]) -> Iterator[tuple[str, str]]:
    """What `_describe` found, without the folders that hold something: path and digest."""
    if described[0] == "dir" and described[1]:
        for inner, each in described[1]:
            yield from _listed(f"{name}/{inner}", each)
    else:
        yield name, canonical.digest(described)


def _describe(path: Path) -> list[Any]:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return ["link", os.readlink(path)]
    if stat.S_ISDIR(mode):
        return ["dir", [[name, _describe(path / name)] for name in sorted(os.listdir(path))]]
    if stat.S_ISREG(mode):
        with path.open("rb") as file:
            return ["file", bool(mode & stat.S_IXUSR), _sha256(file)]
    raise BuilderError("neither a file, a folder nor a link", where=path, hint="take it out of the recipe's folder")


def _sha256(file: Any) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()
