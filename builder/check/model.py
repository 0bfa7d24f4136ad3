"""What a check says, and what it is asked about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from builder.check.tree import Tree
from builder.recipe.model import Target


class Severity(Enum):
    """How bad a finding is, worst first."""

    ERROR = "error"  # the template or profile would not serve, or must not
    WARNING = "warning"  # serves, but not as meant
    NOT_CHECKED = "not checked"  # cannot be seen here; nothing is concluded
    NOTE = "note"  # to be known


@dataclass(frozen=True)
class Finding:
    """One thing found."""

    rule: str  # its id: "kv-cache-fp8-backend"
    severity: Severity
    subject: str  # "profile fp8", "template", a path in the template
    what: str
    evidence: str = ""  # what was seen
    mend: str = ""  # the way out: what to write or do instead
    source: str = ""  # how it is known


class Model(Protocol):
    """The model of a profile."""

    @property
    def path(self) -> str:
        """Its folder in the container."""

    @property
    def shape(self) -> Mapping[str, Any]:
        """As in config.json; empty when it is not known."""


class Profile(Protocol):
    """A profile as `builder.deploy.profile` reads it: as much as checks need."""

    @property
    def name(self) -> str: ...

    @property
    def model(self) -> Model: ...

    @property
    def task(self) -> str:
        """completion or embedding."""

    @property
    def gpus(self) -> int:
        """Cards that it takes; 0 serves on the CPU."""

    @property
    def share(self) -> float:
        """Of each card's whole memory, 0 to 1."""

    @property
    def host(self) -> str | None:
        """The address that it listens on; None: the container's own."""

    @property
    def options(self) -> Mapping[str, Any]:
        """vLLM's options by their long names without dashes in front; no share, no model."""

    @property
    def environment(self) -> Mapping[str, str]: ...


@dataclass(frozen=True)
class Subject:
    """The template that is looked at."""

    name: str  # for messages
    tree: Tree
    target: Target | None  # None: the card is not known
    venv: str = "/opt/vllm"  # where vLLM is installed
    file: Path | None = None  # the packed template; None when there are only layers
    size: int | None = None  # bytes of `file` as its manifest tells


def told(findings: list[Finding] | tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Each finding once, the worst first, otherwise in their order."""
    order = list(Severity)
    return tuple(sorted(dict.fromkeys(findings), key=lambda finding: order.index(finding.severity)))
