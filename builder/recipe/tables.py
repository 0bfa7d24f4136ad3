"""One table of a recipe, checked against the keys that it may have."""

from __future__ import annotations

import copy
import json
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.recipe.document import Document, Place, nearest
from builder.recipe.keys import Key, Type


@dataclass(frozen=True)
class Table:
    """A table as it stands in the file, or as a variant has changed it: then its values come from two places."""

    title: str
    """As messages name it: ``[[Stage]] "base"``."""
    place: Place
    values: Mapping[str, Any]
    places: Mapping[str, Place]

    def over(self, below: Table) -> Table:
        """`below` with this table's keys in place of its own."""
        return Table(below.title, below.place, {**below.values, **self.values}, {**below.places, **self.places})


def table(title: str, place: Place, values: Mapping[str, Any]) -> Table:
    """A table whose keys all stand at `place`."""
    return Table(title, place, values, {key: (*place, key) for key in values})


@dataclass(frozen=True)
class Checker:
    """Checks the tables of one document; the files that they name lie in `folder`."""

    document: Document
    folder: Path
    boundary: Path
    """No named file may lie outside of this folder."""

    def check(self, table: Table, keys: Sequence[Key], elsewhere: Mapping[str, str]) -> None:
        """Refuse what `table` may not hold. `elsewhere` says of other keys where they belong.

        Raises UsageError for an unknown key, a wrong type, a value that is not allowed or a missing file.
        """
        known = {key.name: key for key in keys}
        for name, value in table.values.items():
            if name not in known:
                raise self.document.error(
                    f"unknown key {_quote(name)} in {table.title}",
                    table.places[name],
                    item=name,
                    hint=_unknown_hint(name, known, elsewhere),
                )
            self._check_value(table, known[name], value, table.places[name])

    def complete(self, table: Table, keys: Sequence[Key]) -> dict[str, Any]:
        """The values of every key, defaults filled in. Raises UsageError when a required key is missing."""
        return self._complete(table.title, table.place, table.values, keys)

    def references(self, table: Table, keys: Sequence[Key], names: Mapping[str, Sequence[str]]) -> None:
        """Refuse a `table` that refers to what does not exist. `names` has the members of each array by its name."""
        for key in keys:
            for name, array, text in _references(key, table.values.get(key.name)):
                if name not in names[array]:
                    raise self.document.error(
                        f"{key.name} in {table.title} names {_quote(name)}, and there is no [[{array}]] of this name",
                        table.places[key.name],
                        item=text,
                        hint=did_you_mean(name, names[array]),
                    )

    def _complete(self, title: str, place: Place, values: Mapping[str, Any], keys: Sequence[Key]) -> dict[str, Any]:
        full: dict[str, Any] = {}
        for key in keys:
            if key.name in values:
                value = values[key.name]
                if key.type is Type.TABLES:
                    value = [self._complete(f"{key.name} in {title}", (*place, key.name), v, key.keys) for v in value]
                full[key.name] = value
            elif key.required:
                raise self.document.error(f"{title} has no {key.name}", place, hint=f"{key.name}: {key.help}")
            else:
                full[key.name] = default(key)
        return full

    def _check_value(self, table: Table, key: Key, value: Any, place: Place) -> None:
        def refuse(what: str, item: Any = None, hint: str | None = None) -> Exception:
            text = item if isinstance(item, str) else None
            return self.document.error(f"{key.name} in {table.title} {what}", place, item=text, hint=hint)

        if not _IS[key.type](value):
            raise refuse(f"must be {key.type.value}, not {_describe(value)}", hint=_type_hint(key.type, value))
        if key.type is Type.TABLES:
            for inner in value:
                nested = Table(f"{key.name} in {table.title}", place, inner, dict.fromkeys(inner, place))
                self.check(nested, key.keys, {})
                self.complete(nested, key.keys)
        if key.choices:
            for text in texts(value):
                if text not in key.choices:
                    allowed = ", ".join(key.choices)
                    hint = did_you_mean(text, key.choices) or f"it may be {allowed}"
                    raise refuse(f"is {_quote(text)}, which is not allowed", text, hint)
        if key.check is not None and (wrong := key.check(value)) is not None:
            many = isinstance(value, (list, dict))
            raise refuse(f"is wrong: {wrong}" if many else f"{wrong}, not {_describe(value)}")
        if key.check_each is not None:
            for text in texts(value):
                if (wrong := key.check_each(text)) is not None:
                    raise refuse(f"has {_quote(text)}, which {wrong}", text)
        if key.is_file:
            for text in texts(value):
                if (wrong := self._wrong_file(text)) is not None:
                    raise refuse(wrong, text)

    def _wrong_file(self, text: str) -> str | None:
        if text.startswith("url:"):
            return None
        name = source(text)
        if not name:
            return f"has an entry that names no file: {_quote(text)}"
        if Path(name).is_absolute():
            return f"names {_quote(name)}: a path must begin in the recipe's folder, {self.folder}"
        try:
            real = (self.folder / name).resolve(strict=True)
            mode = real.stat().st_mode
        except FileNotFoundError:
            return f"names {_quote(name)}, which is not in {self.folder}"
        except (OSError, RuntimeError, ValueError) as error:
            return f"names {_quote(name)}, which cannot be read: {getattr(error, 'strerror', None) or error}"
        if not real.is_relative_to(self.boundary):
            return f"names {_quote(name)}, which lies outside of {self.boundary}"
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            return f"names {_quote(name)}, which is neither a file nor a folder"
        return None


def _references(key: Key, value: Any) -> Iterator[tuple[str, str, str]]:
    """What `value` refers to: a name, the array that must have it, and the text that says so."""
    for inner in key.keys:
        for item in value or ():
            yield from _references(inner, item.get(inner.name))
    if key.refers is not None:
        yield from ((text, key.refers, text) for text in texts(value))
    elif key.is_file:
        yield from ((url_name(text), "Url", text) for text in texts(value) if text.startswith("url:"))


def file_values(values: Mapping[str, Any], keys: Sequence[Key]) -> Iterator[tuple[Key, Any]]:
    """The values that name files, with their keys, those of inner tables too."""
    for key in keys:
        value = values.get(key.name)
        if key.is_file and value is not None:
            yield key, value
        for item in value if key.type is Type.TABLES and value else ():
            yield from file_values(item, key.keys)


def source(entry: str) -> str:
    """What an entry ``source:target`` takes from the recipe's folder."""
    return entry.partition(":")[0]


def url_name(entry: str) -> str:
    """The `[[Url]]` that an entry ``url:NAME`` or ``url:NAME:target`` names."""
    return entry.split(":")[1]


def texts(value: Any) -> Iterator[str]:
    """Every text in a value: itself, the members of a list, the values of a table."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (text for item in value.values() for text in texts(item))
    elif isinstance(value, list):
        yield from (text for item in value for text in texts(item))


def default(key: Key) -> Any:
    """What an absent key means, as a value of its own."""
    if key.default is None:
        return {Type.TEXTS: [], Type.INTS: [], Type.TABLES: [], Type.TABLE: {}, Type.BOOL: False}.get(key.type)
    return list(key.default) if isinstance(key.default, tuple) else copy.deepcopy(key.default)


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """The hint for a word that is not one of `known`."""
    near = nearest(word, known)
    return None if near is None else f"did you mean {_quote(near)}?"


def _unknown_hint(name: str, known: Iterable[str], elsewhere: Mapping[str, str]) -> str:
    if name in elsewhere:
        return f"it belongs in {elsewhere[name]}"
    return did_you_mean(name, known) or f"known are {', '.join(known)}"


def _is_text_table(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())


_IS: dict[Type, Callable[[Any], bool]] = {
    Type.TEXT: lambda value: isinstance(value, str),
    Type.BOOL: lambda value: isinstance(value, bool),
    Type.INT: lambda value: isinstance(value, int) and not isinstance(value, bool),
    Type.TEXTS: lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
    Type.INTS: lambda value: isinstance(value, list) and all(_IS[Type.INT](item) for item in value),
    Type.TABLE: _is_text_table,
    Type.TABLES: lambda value: isinstance(value, list) and all(isinstance(item, dict) for item in value),
}


def _type_hint(wanted: Type, value: Any) -> str | None:
    if wanted is Type.TEXT and not isinstance(value, (list, dict)):
        return "put it in quotes"
    if (wanted is Type.TEXTS and isinstance(value, str)) or (wanted is Type.INTS and _IS[Type.INT](value)):
        return "put it in brackets"
    return None


def _describe(value: Any) -> str:
    if isinstance(value, (bool, int, str)):
        return _quote(value)
    if isinstance(value, list):
        return "a list" if not value else f"a list with {_describe(value[0])}" if len(value) == 1 else "this list"
    return {dict: "a table", float: "a number with a point"}.get(type(value), "a date or time")


def _quote(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
