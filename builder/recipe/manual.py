"""The settings as Markdown: what docs/recipe-keys.md holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from builder.recipe.keys import Key, KindInfo
from builder.recipe.settings import AFTER, SECTIONS

_HEAD = """# Keys of a recipe

Written by `builder schema --markdown`. What a recipe is, with an example: [recipe.md](recipe.md).
"""


def manual(kinds: Mapping[str, KindInfo]) -> str:
    """One table of keys for each section and each kind of stage."""
    parts = [_HEAD, *(f"## {section.title}\n\n{section.help}\n\n{key_table(section.keys)}" for section in SECTIONS)]
    parts.append(f"## [[Variant.NAME.Stage]]\n\nThe keys of a stage, and:\n\n{key_table((AFTER,))}")
    for kind in sorted(kinds.values(), key=lambda kind: kind.name):
        keys = key_table(kind.keys) if kind.keys else "It has no keys of its own.\n"
        parts.append(f'## Kind = "{kind.name}"\n\n{kind.help}\n\n{keys}')
    return "\n".join(parts)


def key_table(keys: Sequence[Key]) -> str:
    """A Markdown table of `keys`: name, type, default and meaning."""
    rows = "\n".join("| " + " | ".join(_escaped(cell) for cell in row) + " |" for row in _rows(keys, ""))
    return f"| key | type | default | meaning |\n|---|---|---|---|\n{rows}\n"


def _rows(keys: Sequence[Key], prefix: str) -> Iterator[tuple[str, str, str, str]]:
    for key in keys:
        meaning = key.help if not key.choices else f"{key.help} One of: {', '.join(key.choices)}."
        yield f"`{prefix}{key.name}`", key.type.value, _default(key), meaning
        yield from _rows(key.keys, f"{prefix}{key.name}.")


def _default(key: Key) -> str:
    if key.required:
        return "required"
    if key.default is None or key.default in ("", (), []):
        return ""
    return f"`{str(key.default).lower() if isinstance(key.default, bool) else key.default}`"


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")
