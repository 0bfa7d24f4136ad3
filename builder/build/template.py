"""From layers to the template in `artifacts/`: packed when anything in it changed, left alone when nothing did."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import zstandard

from builder import canonical, pack
from builder.build import explain
from builder.build.layer import CACHED, Built
from builder.build.plan import Node, recipe_digest, stack_digest
from builder.build.run import build, layers
from builder.lock.model import Lock
from builder.progress import Progress
from builder.recipe.model import Recipe
from builder.store import Store


@dataclass(frozen=True)
class Template:
    """A finished template."""

    path: Path
    sha256: str
    size: int  # bytes
    fresh: bool  # False when it was there already
    seconds: float = 0.0  # that packing took


def current(recipe: Recipe, lock: Lock, nodes: Sequence[Node], store: Store, folder: Path) -> Template | None:
    """The template in `folder` when it is what `nodes` would give, without reading it: by keys and stat data.

    None when a layer is missing, or when it, what lies beside it or a line of theirs in `SHA256SUMS` was changed.
    """
    digests = [layer.digest for layer in layers(nodes, store) if layer is not None]
    if len(digests) < len(nodes):
        return None
    path = folder / pack.file_name(recipe.full_name, recipe.version, recipe.distribution.architecture)
    try:
        record = json.loads((store.root / _record(path)).read_text())
        if record["told"] != _told(_identity(recipe, lock, nodes, digests), path):
            return None
        return Template(path, record["told"]["sums"][0], path.stat().st_size, fresh=False)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def make(
    recipe: Recipe, lock: Lock, nodes: Sequence[Node], store: Store, folder: Path, progress: Progress
) -> tuple[Template, tuple[Built, ...]]:
    """Build the layers of `nodes` and pack them into `folder`, with manifest, SBOM and checksums beside the template.

    Raises BuilderError as `build` does, when a layer's file is not what was captured, or the disk is full.
    """
    built = build(recipe, nodes, store, progress)
    return _packed(recipe, lock, built, store, folder, progress), built


def _packed(
    recipe: Recipe, lock: Lock, built: Sequence[Built], store: Store, folder: Path, progress: Progress
) -> Template:
    started = time.monotonic()
    architecture = recipe.distribution.architecture
    packed = pack.pack(
        [
            pack.Layer(stage.node.stage.name, stage.layer.index, stage.layer.tree, is_new=stage.reason != CACHED)
            for stage in built
        ],
        folder,
        name=recipe.full_name,
        version=recipe.version,
        architecture=architecture,
        level=recipe.compression_level,
        epoch=recipe.source_date_epoch,
        earlier=_earlier(recipe, store, folder),
        info=_info(recipe, lock, built),
        progress=progress,
    )
    for stage in built:
        node = stage.node
        explain.remember(store, recipe.full_name, node.stage.name, stage.layer.facts["body"], node.listing)
    identity = _identity(recipe, lock, [stage.node for stage in built], [stage.layer.digest for stage in built])
    left = packed.left.told()
    told = _told(identity, packed.path)
    if told["stats"][0] == list(packed.left.stat):  # else another builder has put its own there already
        record = {"told": told, "left": left, "sum": canonical.digest(left)}
        store.write_text(_record(packed.path), json.dumps(record, sort_keys=True))
    return Template(packed.path, packed.sha256, packed.size, fresh=True, seconds=time.monotonic() - started)


def _earlier(recipe: Recipe, store: Store, folder: Path) -> pack.Earlier | None:
    """The template that was made last in `folder`, when this store has made it and it is still listed as such."""
    path = pack.newest(folder, recipe.full_name, recipe.distribution.architecture)
    if path is None:
        return None
    try:
        record = json.loads((store.root / _record(path)).read_text())
        is_known = canonical.digest(record["left"]) == record["sum"] and pack.listed(path) == record["left"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return pack.Earlier.load(path, record["left"]) if is_known else None


def _identity(recipe: Recipe, lock: Lock, nodes: Sequence[Node], digests: Sequence[str]) -> str:
    """The digest of all that template, manifest and bill of materials are made of."""
    return canonical.digest(
        {
            "stack": stack_digest(digests),
            "pack": [pack.FORMAT, zstandard.__version__],
            "beside": pack.FORM,
            "target": asdict(recipe.target) if recipe.target else None,
            "venvs": [[venv.name, venv.path, venv.python, list(venv.requirements)] for venv in recipe.venvs],
            "recipe": recipe_digest(recipe, nodes),
            "epoch": recipe.source_date_epoch,
            "skipped": [[stage.name, stage.skip] for stage in recipe.stages],
            "lock": asdict(lock),
        }
    )


def _told(identity: str, path: Path) -> dict[str, Any]:
    """What is kept about the template at `path`, and is the same as long as nobody touched it. Raises OSError."""
    return {"identity": identity, "sums": [pack.listed(part) for part in pack.parts(path)], "stats": _stats(path)}


def _record(path: Path) -> Path:
    return Path("outputs", f"{canonical.digest(str(path.resolve()))}.json")


def _stats(path: Path) -> list[list[int]]:
    return [list(pack.Stat.of(part.stat())) for part in pack.parts(path)]


def _info(recipe: Recipe, lock: Lock, built: Sequence[Built]) -> pack.Info:
    """What the manifest and the SBOM tell: only what entered this template, skipped stages' inputs not."""
    nodes = [stage.node for stage in built]
    used = {blob.sha256 for node in nodes for blob in node.inputs.blobs}
    return pack.Info(
        recipe=recipe.name,
        variant=recipe.variant,
        recipe_digest=recipe_digest(recipe, nodes),
        distribution=recipe.distribution.name,
        release=recipe.distribution.release,
        stages=tuple(
            pack.StageInfo(stage.node.stage.name, stage.node.kind.name, stage.key, stage.layer.digest, stage.layer.size)
            for stage in built
        ),
        skipped=tuple((stage.name, stage.skip) for stage in recipe.stages if stage.skip is not None),
        debs=tuple(deb for debs in lock.debs.values() for deb in debs if deb.blob.sha256 in used),
        wheels=tuple(wheel for wheels in lock.venvs.values() for wheel in wheels if wheel.blob.sha256 in used),
        urls=tuple((name, blob) for name, blob in sorted(lock.urls.items()) if blob.sha256 in used),
        target=recipe.target,
        venvs=tuple(venv for venv in recipe.venvs if venv.path),
    )
