"""Templates and recipes as subjects of a check."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from builder import pack
from builder.check import tree
from builder.check.model import Subject
from builder.command import run
from builder.progress import Progress, Silent
from builder.recipe.model import Recipe, Target
from builder.store import Layer, Store

_VLLM = re.compile(r"vllm\b", re.IGNORECASE)


def of_recipe(recipe: Recipe, layers: Sequence[Layer], file: Path | None = None) -> Subject:
    """A recipe's finished layers, lowest first; `file`: the template that was packed of them, if it was."""
    there = tree.of_layers([(layer.index, layer.tree) for layer in layers])
    return Subject(recipe.full_name, there, recipe.target, _venv(_asked(recipe)), file)


def of_list(template: Path, recipe: Recipe | None) -> Subject:
    """A packed template by its manifest alone: no byte of it is read. Raises BuilderError when there is none.

    Target and environment are the manifest's; an older one has none, and then they are the recipe's as it is now.
    """
    manifest = pack.read_manifest(template)
    listed = tree.of_manifest(manifest)
    return Subject(template.name, listed, *_facts(template, manifest, recipe), template, _size(manifest))


@contextmanager
def of_template(
    template: Path, recipe: Recipe | None, store: Store, progress: Progress | None = None
) -> Iterator[Subject]:
    """A packed template with all its files: the store's layers where it has those very ones, else unpacked.

    Target and environment as in `of_list`. Raises BuilderError when there is no manifest, or it cannot be unpacked.
    """
    manifest = pack.read_manifest(template)
    listed = tree.of_manifest(manifest)
    layers = _layers(manifest, store)
    target, venv = _facts(template, manifest, recipe)
    if layers is not None:
        yield Subject(template.name, tree.Tree(listed.entries, layers), target, venv, template, _size(manifest))
        return
    with store.scratch() as scratch, (progress or Silent()).task(f"unpacking {template.name}"):
        root = scratch / "root"
        root.mkdir()
        _unpack(template, root)
        yield Subject(template.name, tree.Tree(listed.entries, (root,)), target, venv, template, _size(manifest))


def _layers(manifest: Mapping[str, Any], store: Store) -> tuple[Path, ...] | None:
    """The layers that the template was packed of, when the store has them all with the same content."""
    found = []
    for stage in manifest["stages"]:
        layer = store.layer(str(stage["key"]))
        if layer is None or layer.digest != stage["digest"]:
            return None
        found.append(layer.tree)
    return tuple(found)


def _size(manifest: Mapping[str, Any]) -> int | None:
    """Bytes of the packed file; None where the manifest does not tell."""
    found = manifest.get("size")
    return found if isinstance(found, int) else None


def _unpack(template: Path, root: Path) -> None:
    """As Proxmox does it (PVE/LXC/Create.pm)."""
    argv = ["tar", "--zstd", "--sparse", "--numeric-owner", "-xpf", str(template), "-C", str(root), "--anchored"]
    run([*argv, "--exclude", "./dev/*"], env={"PATH": os.defpath}, hint=f"run `builder verify {template}`")


def _facts(template: Path, manifest: Mapping[str, Any], recipe: Recipe | None) -> tuple[Target | None, str]:
    """The card that a template is for, and where its vLLM lies."""
    if "target" in manifest:
        return pack.read_target(template, manifest), _venv(pack.read_venvs(template, manifest))
    return (recipe.target, _venv(_asked(recipe))) if recipe else (None, _venv(()))


def _asked(recipe: Recipe) -> tuple[tuple[str, tuple[str, ...]], ...]:
    return tuple((venv.path, venv.requirements) for venv in recipe.venvs)


def _venv(venvs: Sequence[tuple[str, Sequence[str]]]) -> str:
    """The environment that vLLM is asked for in, by path and requirements; its usual place when there is none."""
    found = (path for path, texts in venvs if any(_VLLM.match(text) for text in texts))
    return next(found, "/opt/vllm")
