"""Recipes and kinds of stage without tools: what tests of plans and builds are made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from builder.recipe.model import Distribution, Recipe, Stage, Venv
from builder.stage.kind import Context, Inputs, Kind


def kind(
    version: int = 1,
    *,
    name: str = "test",
    build: Callable[[Context], None] = lambda context: None,
    unseen: frozenset[str] = frozenset(),
    **inputs: Any,
) -> Kind:
    return Kind(
        name=name,
        version=version,
        help="",
        keys=(),
        requests=lambda recipe, stage: (),
        inputs=lambda recipe, stage, lock: Inputs(params=dict(stage.params), **inputs),
        build=build,
        unseen=unseen,
    )


def recipe(*stages: Stage, epoch: int = 1, venvs: tuple[Venv, ...] = ()) -> Recipe:
    distribution = Distribution("debian", "bookworm", "amd64", "http://mirror", "http://security", ("main",))
    return Recipe(
        directory=Path("/recipe"),
        name="r",
        version="1",
        variant="",
        variants=(),
        source_date_epoch=epoch,
        compression_level=3,
        distribution=distribution,
        target=None,
        venvs=venvs,
        urls=(),
        stages=stages,
    )


def stage(skip: str | None = None, memory: int = 1, *, name: str = "s", kind: str = "test", **params: Any) -> Stage:
    return Stage(name, kind, params, skip, "", memory, 1)
