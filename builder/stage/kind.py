"""The protocol that every kind of stage follows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from builder.lock.model import Blob, Lock, Request
from builder.recipe.keys import Key
from builder.recipe.model import Recipe, Stage
from builder.store import Layer


@dataclass(frozen=True)
class Inputs:
    """All that may influence a stage's layer, beside the layer below and SourceDateEpoch."""

    params: Mapping[str, Any]  # JSON values only: resolved parameters
    blobs: tuple[Blob, ...] = ()  # locked files, order given by the kind
    files: Mapping[str, Path] = field(default_factory=dict)
    """Name (as the key records it) to a file or folder of the recipe; the planner digests content, type and x-bit."""


@dataclass(frozen=True)
class Context:
    """What a running stage is given. All paths are on the host unless said otherwise."""

    recipe: Recipe
    stage: Stage
    inputs: Inputs
    upper: Path  # the layer being made: write into it directly, or through `run`
    scratch: Path  # an empty folder of the store's temporary area, same file system as blobs; removed afterwards
    blob: Callable[[Blob], Path]  # where a locked file lies in the store: read only, never write through
    tool: Callable[[str], Path]  # a locked tool of the builder's own (uv), ready to be bound in
    run: Callable[..., None]
    """``run(argv, *, env={}, binds=(), host_root=False, cwd="/")``: one command in the sandbox over the layers
    below and `upper`; raises BuilderError naming the stage. No network, fixed environment plus `env`."""
    lower: Callable[[str], Path | None]
    """The file at an absolute template path in `upper` or the layers below, None when there is none or it is hidden."""
    epoch: int  # SourceDateEpoch
    before: Callable[[], Layer | None] = lambda: None
    """The layer that the same code made for this stage last, over the same layers, of other `params` or `blobs`; None
    when the store has none. It saves work and nothing else: what is taken from it must be held against its index, and
    be what would have been made without it."""


@dataclass(frozen=True)
class Kind:
    """A kind of stage: its name, the version of its code that goes into keys, its settings, and three functions."""

    name: str
    version: int
    help: str
    keys: tuple[Key, ...]
    requests: Callable[[Recipe, Stage], Sequence[Request]]
    inputs: Callable[[Recipe, Stage, Lock], Inputs]
    build: Callable[[Context], None]
    unseen: frozenset[str] = frozenset()
    """Kinds whose stages below this one does not see: it is made as if they were not there, and beside them."""
