"""Commands in the locked base of a recipe, with the host's network: for `builder lock` alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import takewhile
from typing import Protocol

from builder import sandbox
from builder.build.plan import blobs, plan
from builder.build.run import build, over
from builder.errors import BuilderError
from builder.lock.model import Lock
from builder.progress import Progress
from builder.recipe.model import Recipe
from builder.sandbox.spec import Bind, Spec
from builder.stage.kind import Kind
from builder.store import Store, fetch

BASE_KINDS = frozenset({"debian", "packages"})
"""The kinds of stage that make up a base: their locks depend on no interpreter."""


class Run(Protocol):
    """Runs one command in the base; raises BuilderError when it fails."""

    def __call__(
        self, argv: Sequence[str], *, env: Mapping[str, str] = ..., binds: Sequence[Bind] = ..., cwd: str = ...
    ) -> None: ...


@contextmanager
def base_runner(
    recipe: Recipe, lock: Lock, store: Store, kinds: Mapping[str, Kind], progress: Progress
) -> Iterator[Run]:
    """Fetch and build the base (the recipe's leading Debian stages), then run commands over it.

    Nothing that they change is kept; what they produce they write into a writable bind. Raises BuilderError when
    the recipe has no such stage.
    """
    base = tuple(takewhile(lambda stage: stage.kind in BASE_KINDS, recipe.stages))
    if not base:
        raise BuilderError(
            "its first stage is not of kind debian, so there is no interpreter to lock wheels with",
            where=recipe.directory / "recipe.toml",
        )
    nodes = plan(replace(recipe, stages=base), lock, kinds)
    missing = [blob for blob in blobs(nodes) if not store.has(blob)]
    if missing:
        fetch(store, missing, progress=progress)
    with over(build(recipe, nodes, store, progress), store) as placed:

        def run(
            argv: Sequence[str],
            *,
            env: Mapping[str, str] | None = None,
            binds: Sequence[Bind] = (),
            cwd: str = "/",
        ) -> None:
            spec = Spec(name="lock", argv=tuple(argv), env=env or {}, binds=tuple(binds), cwd=cwd, network=True)
            sandbox.run(placed(spec))

        yield run
