"""Templates: files of a recipe with `@NAME@` in place of values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from builder.errors import UsageError
from builder.recipe.tables import did_you_mean

_PLACEHOLDER = re.compile(r"@([A-Z][A-Z0-9_]*)@")


def render(sources: Sequence[Path], values: Mapping[str, str]) -> list[str]:
    """The text of each template with every `@NAME@` replaced. Names are capitals, digits and '_'.

    Raises UsageError with file and line for a name without a value, and for a value that no template uses.
    """
    used: set[str] = set()
    texts = [_render(source, values, used) for source in sources]
    if unused := sorted(set(values) - used):
        raise UsageError(
            f"no template has @{unused[0]}@, for which Values has a value", where=", ".join(map(str, sources)) or None
        )
    return texts


def _render(source: Path, values: Mapping[str, str], used: set[str]) -> str:
    try:
        text = source.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot be read as text: {error}", where=source) from error

    def value(found: re.Match[str]) -> str:
        name = found[1]
        if name not in values:
            line = text.count("\n", 0, found.start()) + 1
            raise UsageError(f"Values has no {name}", where=f"{source}:{line}", hint=did_you_mean(name, values))
        used.add(name)
        return values[name]

    return _PLACEHOLDER.sub(value, text)
