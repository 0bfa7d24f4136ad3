"""What a recipe is once it has been read: immutable, complete, validated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Distribution:
    """`[Distribution]`: where Debian packages come from."""

    name: str  # debian | ubuntu
    release: str  # bookworm, trixie, noble
    architecture: str  # Debian's name: amd64
    mirror: str
    security_mirror: str
    components: tuple[str, ...]


@dataclass(frozen=True)
class Target:
    """`[Target]`: the GPU that the template is for."""

    name: str
    compute_capability: str
    devices: int
    memory_mib: int


@dataclass(frozen=True)
class Venv:
    """`[[Venv]]`: one Python environment, resolved as one set, installed by one or more `wheels` stages."""

    name: str
    path: str  # absolute, inside the template
    python: str  # absolute path of the template's interpreter, such as /usr/bin/python3.11
    requirements: tuple[str, ...]
    constraints: tuple[str, ...]
    overrides: tuple[str, ...]
    exclude_newer: str  # RFC 3339, UTC
    index: str
    origin: str = ""  # "" when the table is the same in every variant, else the variant that sets it

    @property
    def lock_id(self) -> str:
        """The name under which the lock keeps this environment's wheels."""
        return f"{self.name}-{self.origin}" if self.origin else self.name


@dataclass(frozen=True)
class Url:
    """`[[Url]]`: one file from the network, by name. A published hash stands in the recipe, else only in the lock."""

    name: str
    url: str
    sha256: str | None
    size: int | None
    origin: str = ""  # "" when the table is the same in every variant, else the variant that sets it

    @property
    def lock_id(self) -> str:
        """The name under which the lock keeps this file."""
        return f"{self.name}-{self.origin}" if self.origin else self.name


@dataclass(frozen=True)
class Stage:
    """`[[Stage]]`: one layer. `params` holds the kind's own keys, defaults filled in, types checked."""

    name: str
    kind: str
    params: Mapping[str, Any]
    skip: str | None  # the reason why this declared stage is not built, None when it is
    origin: str  # "" when the stage is the same in every variant, else the variant that sets it
    memory_mib: int  # limit for all processes of the stage together
    seconds: int  # limit for the stage's run time

    @property
    def lock_id(self) -> str:
        """The name under which the lock keeps this stage's inputs."""
        return f"{self.name}-{self.origin}" if self.origin else self.name


@dataclass(frozen=True)
class Recipe:
    """One recipe with one variant applied."""

    directory: Path  # holds recipe.toml and the files it names
    name: str  # [Output] ImageId
    version: str  # [Output] ImageVersion
    variant: str  # "" when the recipe has none
    variants: tuple[str, ...]
    source_date_epoch: int
    compression_level: int
    distribution: Distribution
    target: Target | None
    venvs: tuple[Venv, ...]
    urls: tuple[Url, ...]
    stages: tuple[Stage, ...]

    @property
    def full_name(self) -> str:
        """`name` with the variant: what outputs are called."""
        return f"{self.name}-{self.variant}" if self.variant else self.name

    def venv(self, name: str) -> Venv:
        """The environment called `name`. Raises KeyError."""
        return {venv.name: venv for venv in self.venvs}[name]

    def url(self, name: str) -> Url:
        """The file called `name`. Raises KeyError."""
        return {url.name: url for url in self.urls}[name]
