"""One table of settings drives parsing, defaults, JSON Schema, `recipe show`, docs and errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Type(Enum):
    """The type of a setting's value."""

    TEXT = "text"
    BOOL = "bool"
    INT = "int"
    TEXTS = "list of text"
    TABLE = "table of text"
    TABLES = "list of tables"


@dataclass(frozen=True)
class Key:
    """One setting: its name (mkosi's where mkosi has the thing), type, meaning and limits."""

    name: str
    type: Type
    help: str
    default: Any = None
    required: bool = False
    choices: tuple[str, ...] = ()
    keys: tuple[Key, ...] = ()
    """The keys of each table when `type` is TABLES."""
    check: Callable[[Any], str | None] | None = None
    """Says what is wrong with a value, None when nothing is."""
    is_file: bool = False
    """The value (each value of a list) names a file or folder of the recipe that must exist. For an entry of
    the form ``source:target`` only the source is looked at; ``url:NAME`` names a `[[Url]]` instead of a file."""
    mkosi: str | None = None
    """The mkosi section that has this very key, None when it is ours alone."""
