"""Changing one value of a recipe file: one line of it, everything else byte by byte as it was."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from builder.errors import UsageError
from builder.recipe.document import Document, read
from builder.recipe.load import FILE
from builder.recipe.tables import Table
from builder.recipe.variants import split, whole

_LINE = r"""(?P<before>\s*(?:{key}|"{key}"|'{key}')\s*=\s*)(?P<value>"[^"\\]*"|'[^']*')(?P<after>\s*(?:#.*)?)"""


@dataclass(frozen=True)
class Edit:
    """A recipe file with one line changed; not yet written."""

    path: Path
    line: int
    old: str  # the value
    new: str
    before: bytes
    after: bytes


def set_text(path: Path, kind: str, key: str, value: str) -> Edit:
    """The recipe at `path` (recipe.toml or its folder) with `value` as text for `key` of its one stage of this kind.

    The stage may stand in the recipe or in a variant. Raises UsageError when no stage of this kind sets `key`, when
    more than one does, or when the value does not stand on a line of its own.
    """
    document = read(path / FILE if path.is_dir() else path)
    found = [table for table in _stages(document, kind) if key in table.values]
    if not found:
        listed = ", ".join(sorted({str(kind) for kind in _kinds(document)}))
        raise UsageError(
            f"no stage of this recipe, in any variant, is of Kind {kind}", where=document.path, hint=f"it has {listed}"
        )
    lines = [document.line(table.places[key]) for table in found]
    if len(found) > 1:
        raise UsageError(
            f"{len(found)} stages have a {key}, on lines {', '.join(map(str, lines))}",
            where=document.path,
            hint="change them yourself, then run `builder lock`",
        )
    return _set(document, lines[0], key, value)


@contextmanager
def written(edit: Edit) -> Iterator[None]:
    """The file holds the edit from here on; when the block fails it is as it was. Raises OSError."""
    _write(edit.path, edit.after)
    try:
        yield
    except BaseException:
        _write(edit.path, edit.before)
        raise


def _stages(document: Document, kind: str) -> Iterator[Table]:
    """The tables that say something of a stage of this kind, those of variants too."""
    base, variants = split(document)
    for parts in (base, *variants.values()):
        for stage in parts.arrays["Stage"]:
            full = stage if parts is base else whole(document, base, stage)
            if full.values.get("Kind") == kind:
                yield stage


def _kinds(document: Document) -> Iterator[object]:
    base, variants = split(document)
    for parts in (base, *variants.values()):
        yield from (stage.values["Kind"] for stage in parts.arrays["Stage"] if "Kind" in stage.values)


def _set(document: Document, line: int, key: str, value: str) -> Edit:
    before = document.path.read_bytes()
    lines = before.decode("utf-8").split("\n")
    text = lines[line - 1]
    end = "\r" if text.endswith("\r") else ""
    found = re.fullmatch(_LINE.format(key=re.escape(key)), text[: len(text) - len(end)])
    if found is None:
        raise UsageError(
            f"{key} is not a text on a line of its own", where=f"{document.path}:{line}", hint=f'write {key} = "..."'
        )
    lines[line - 1] = f"{found['before']}{json.dumps(value)}{found['after']}{end}"
    return Edit(document.path, line, found["value"][1:-1], value, before, "\n".join(lines).encode())


def _write(path: Path, data: bytes) -> None:
    """Replace the file's bytes at once; its mode stays."""
    place = path.resolve()
    part = place.with_name(f".{place.name}.part-{os.getpid()}")
    try:
        part.write_bytes(data)
        part.chmod(place.stat().st_mode & 0o7777)
        os.replace(part, place)
    finally:
        part.unlink(missing_ok=True)
