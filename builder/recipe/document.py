"""A TOML file together with the lines on which its tables and keys stand, for errors that name the place."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli

from builder.errors import UsageError

Place = tuple[str | int, ...]
"""Where a value stands: keys, and the index in each array of tables, such as ("Stage", 0, "Packages")."""

_SPACE = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_WORD = re.compile(r"[A-Za-z0-9_-]+")
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"""(?:"{0,2})|' + r"'''.*?'''(?:'{0,2})|" + r'"(?:\\.|[^"\\])*"|' + r"'[^']*'", re.DOTALL
)


@dataclass(frozen=True)
class Document:
    """A parsed TOML file."""

    path: Path
    data: Mapping[str, Any]
    text: str
    spans: Mapping[Place, tuple[int, int]]
    """The first and last line of each table's heading and each key with its value."""

    def line(self, place: Place, item: str | None = None) -> int:
        """The line of `place`, or of what holds it; with `item` the line of that text within the value."""
        while place not in self.spans:
            if not place:
                return 1
            place = place[:-1]
        first, last = self.spans[place]
        if item is not None:
            word = re.compile(rf"(?<![\w./-]){re.escape(item)}(?![\w./-])")
            for number, line in enumerate(self.text.split("\n")[first - 1 : last], first):
                if word.search(line):
                    return number
        return first

    def error(self, what: str, place: Place, *, item: str | None = None, hint: str | None = None) -> UsageError:
        """The error to raise for what is wrong at `place`."""
        return UsageError(what, where=f"{self.path}:{self.line(place, item)}", hint=hint)


def read(path: Path) -> Document:
    """The TOML file at `path`. Raises UsageError, with file and line, when it is missing, unreadable or no TOML."""
    try:
        text = path.read_bytes().decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UsageError("is not UTF-8", where=f"{path}:{line}") from error
    except (OSError, ValueError) as error:
        raise UsageError(getattr(error, "strerror", None) or str(error), where=path) from error
    try:
        data = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        raise UsageError(f"is not TOML: {error.msg}", where=f"{path}:{error.lineno}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"is not TOML that can be read: {error}", where=path) from error
    return Document(path, data, text, dict(_spans(text)))


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The one of `known` that `word` was probably meant to be, None when nothing is near."""
    lowered = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.6)
    return lowered[found[0]] if found else None


def _spans(text: str) -> Iterator[tuple[Place, tuple[int, int]]]:
    """Each table and key of `text`, which is valid TOML, with its lines."""
    arrays: dict[Place, int] = {}
    table: Place = ()
    at = _skip(text, 0)
    while at < len(text):
        start = at
        heading = re.compile(r"\[\[?").match(text, at)
        key, at = _key(text, heading.end() if heading else at)
        if heading:
            at += len(heading[0])
            parent = _resolve(key[:-1], arrays)
            table = (*parent, key[-1])
            if len(heading[0]) == 2:
                arrays[table] = arrays.get(table, 0) + 1
            table = _resolve(key, arrays)
            place = table
        else:
            place = (*table, *key)
            at = _value(text, at + 1)
        first = text.count("\n", 0, start) + 1
        span = (first, first + text.count("\n", start, at))
        yield place, span
        if place[-1] == 0:
            yield place[:-1], span
        at = _skip(text, at)


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _key(text: str, at: int) -> tuple[tuple[str, ...], int]:
    """The dotted key at `at`, and where the `=` or `]` after it stands."""
    parts: list[str] = []
    while True:
        at = _skip(text, at)
        if word := _WORD.match(text, at):
            parts.append(word[0])
            at = word.end()
        elif quoted := _STRING.match(text, at):
            parts.append(tomli.loads(f"k = {quoted[0]}")["k"])
            at = quoted.end()
        at = _skip(text, at)
        if text[at] != ".":
            return tuple(parts), at
        at += 1


def _value(text: str, at: int) -> int:
    """Where the value that begins at `at` ends."""
    depth = 0
    while at < len(text):
        if string := _STRING.match(text, at):
            at = string.end()
            continue
        if text[at] == "#":
            if depth == 0:
                break
            at = _skip(text, at)
            continue
        if text[at] == "\n" and depth == 0:
            break
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(text[at], 0)
        at += 1
    return at


def _resolve(key: tuple[str, ...], arrays: Mapping[Place, int]) -> Place:
    """The place that a heading names: into the last member of each array of tables on the way."""
    place: Place = ()
    for part in key:
        place = (*place, part)
        if place in arrays:
            place = (*place, arrays[place] - 1)
    return place
