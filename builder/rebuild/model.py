"""What a rebuild is asked to be like, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


class CannotVaryError(Exception):
    """This machine, or who calls, cannot have that variation; the text says why."""


@dataclass(frozen=True)
class Way:
    """How one rebuild runs. Everything not said here is as the caller has it."""

    folder: str = "rebuild"  # what lies in it: the project, its store and the template
    before: tuple[str, ...] = ()  # words before the builder's own command
    env: Mapping[str, str] = field(default_factory=dict)  # on top of the caller's
    umask: int | None = None
    user: str | None = None
    engine: str = "host"
    shuffled: bool = False  # the project's folders list their names in another order at each look


class State(Enum):
    """How one variation ended."""

    SAME = "same"
    DIFFERENT = "different"
    FAILED = "failed"
    NOT_TRIED = "not tried"


@dataclass(frozen=True)
class Outcome:
    """What one variation gave."""

    variation: str
    state: State
    how: str  # what was varied, or why it failed or was not tried
    sha256: str = ""  # of the template that came out
    seconds: float = 0.0
    stage: str = ""  # the first whose layer differs; "pack" when all layers are the same
    files: tuple[str, ...] = ()  # that differ
    shown: str = ""  # the difference itself, lines of text
