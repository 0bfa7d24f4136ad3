"""A template's file, as several commands take it."""

from __future__ import annotations

from pathlib import Path

from builder import pack
from builder.errors import UsageError


def template_file(path: Path, hint: str = "give the .tar.zst of a template") -> Path:
    """`path`. Raises UsageError, with `hint`, when no template is there."""
    if not path.is_file():
        raise UsageError("there is no such template", where=path, hint=hint)
    if not path.name.endswith(pack.SUFFIX):
        raise UsageError("is no template", where=path, hint=hint)
    return path
