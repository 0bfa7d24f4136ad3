"""One table of settings drives parsing, defaults, JSON Schema, `recipe show`, docs and errors."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol


class Type(Enum):
    """The type of a setting's value."""

    TEXT = "text"
    BOOL = "bool"
    INT = "int"
    TEXTS = "list of text"
    INTS = "list of int"
    TABLE = "table of text"
    TABLES = "list of tables"


@dataclass(frozen=True)
class Key:
    """One setting: its name (mkosi's where mkosi has the thing), type, meaning and limits."""

    name: str
    type: Type
    help: str
    default: Any = None
    """What an absent key means. None is the empty value of the type: no text, no number, False, [], {}."""
    required: bool = False
    choices: tuple[str, ...] = ()
    keys: tuple[Key, ...] = ()
    """The keys of each table when `type` is TABLES."""
    check: Callable[[Any], str | None] | None = None
    """Says what is wrong with a value, None when nothing is."""
    check_each: Callable[[str], str | None] | None = None
    """Says what is wrong with one text of the value."""
    is_file: bool = False
    """The value (each value of a list) names a file or folder of the recipe that must exist. For an entry of
    the form ``source:target`` only the source is looked at; ``url:NAME`` names a `[[Url]]` instead of a file."""
    mkosi: str | None = None
    """The mkosi section that has this very key, None when it is ours alone."""
    refers: str | None = None
    """The value names a table of this array, such as ``"Venv"``, that must exist."""


class KindInfo(Protocol):
    """What a recipe must know of a kind of stage; `builder.stage.kind.Kind` is one."""

    @property
    def name(self) -> str:
        """As `Kind` in a recipe writes it."""

    @property
    def help(self) -> str:
        """What a stage of this kind makes, in one sentence."""

    @property
    def keys(self) -> tuple[Key, ...]:
        """Its own settings, beside those of every `[[Stage]]`."""


def matches(pattern: str, meaning: str) -> Callable[[Any], str | None]:
    """A `Key.check`: the whole text matches `pattern`, which `meaning` says in words."""
    compiled = re.compile(pattern)
    return lambda value: None if compiled.fullmatch(value) else f"must be {meaning}"


def between(low: int, high: int | None = None) -> Callable[[Any], str | None]:
    """A `Key.check`: the number is at least `low`, and at most `high` where there is one."""
    bounds = f"at least {low}" if high is None else f"from {low} to {high}"
    return lambda value: None if low <= value and (high is None or value <= high) else f"must be {bounds}"
