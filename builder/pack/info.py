"""What is told about a template beside it, apart from its files."""

from __future__ import annotations

from dataclasses import dataclass

from builder.lock.model import Blob, Deb, Wheel
from builder.recipe.model import Target, Venv


@dataclass(frozen=True)
class StageInfo:
    """One stage's layer: its name and kind, the key that named it, its content's digest, and bytes in its files."""

    name: str
    kind: str
    key: str
    digest: str
    size: int


@dataclass(frozen=True)
class Info:
    """Where a template comes from: the recipe with its variant and digest, the stages, and all locked inputs."""

    recipe: str
    variant: str
    recipe_digest: str
    distribution: str  # debian | ubuntu
    release: str
    stages: tuple[StageInfo, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()  # declared stages that are not in it, and why
    debs: tuple[Deb, ...] = ()
    wheels: tuple[Wheel, ...] = ()
    urls: tuple[tuple[str, Blob], ...] = ()  # name in the lock, file
    target: Target | None = None  # the card that it is for
    venvs: tuple[Venv, ...] = ()
