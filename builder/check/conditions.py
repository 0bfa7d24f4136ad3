"""When a rule holds: a list of conditions, each on one thing, as builder/data/rules.toml and holes.toml write them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from builder.check.look import FACTS, Look, UnseenError, View
from builder.check.packages import fits
from builder.errors import BuilderError

_THINGS = ("Option", "Environment", "Package", "File", "Shape", "Profile", "Fact", "Capability")
_TESTS = ("In", "NotIn", "Given", "Below", "Version", "Pattern")


@dataclass(frozen=True)
class Condition:
    """One thing (`thing` and its `name`) and one test of it.

    Option, Environment: of the profile. Package: the version that its server imports. File: the text of a file of the
    template. Shape: a dotted path of the model's config.json. Profile: its `task`, `gpus` or `host`. Fact: one of
    `look.FACTS`. Capability: the card's. Tests: In, NotIn (a missing thing is in none), Given (whether it is there),
    Below (a number), Version (a PEP 440 set), Pattern (found anywhere in it).
    """

    thing: str
    name: str
    test: str
    wanted: Any
    default: Any = None  # of an option that is not given

    @property
    def needs_profile(self) -> bool:
        return self.thing in ("Option", "Environment", "Shape", "Profile", "Fact")


def parse(tables: Iterable[Mapping[str, Any]], where: str) -> tuple[Condition, ...]:
    """The conditions that `tables` write. Raises BuilderError naming the rule `where` when one is not well formed."""
    return tuple(_parse(table, where) for table in tables)


def _parse(table: Mapping[str, Any], where: str) -> Condition:
    things, tests = table.keys() & set(_THINGS), table.keys() & set(_TESTS)
    if len(things) != 1 or len(tests) != 1 or table.keys() - things - tests - {"Default"}:
        raise BuilderError(f"a condition with {', '.join(sorted(table))}", where=where, hint="one thing and one test")
    (thing,), (test,) = things, tests
    if thing == "Fact" and table[thing] not in FACTS:
        raise BuilderError(f"no fact {table[thing]!r}", where=where, hint=f"known are {', '.join(FACTS)}")
    return Condition(thing, str(table[thing]), test, table[test], table.get("Default"))


def evidence(conditions: Iterable[Condition], look: Look, view: View | None) -> str | None:
    """What makes all of the conditions hold, in words; None when one does not.

    A condition about a profile does not hold without one. Raises UnseenError when one cannot be looked at and the
    others hold.
    """
    seen: list[str] = []
    unseen: list[UnseenError] = []
    for condition in conditions:
        if condition.needs_profile and view is None:
            return None
        try:
            value = _value(condition, look, view)
        except UnseenError as error:
            unseen.append(error)
            continue
        if not _holds(condition, value):
            return None
        if words := _words(condition, value):
            seen.append(words)
    if unseen:
        raise unseen[0]
    return ", ".join(dict.fromkeys(seen))


def _value(condition: Condition, look: Look, view: View | None) -> Any:
    name = condition.name
    if condition.thing == "Package":
        package = (view.importable if view else look.importable).get(name)
        return package.version if package else None
    if condition.thing == "File":
        entry = look.tree.find(name)
        if entry and entry.size and not look.tree.readable:
            raise UnseenError(f"{name}: only the list of files is at hand")
        return look.tree.read(name)
    if condition.thing == "Capability":
        if not look.capability:
            raise UnseenError("no [Target] is known")
        return look.capability
    assert view is not None
    if condition.thing == "Option":
        return view.options.get(name, condition.default)
    if condition.thing == "Environment":
        return view.environment.get(name)
    if condition.thing == "Shape":
        value: Any = view.shape
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value
    return view.fact(name) if condition.thing == "Fact" else getattr(view.profile, name)


def _holds(condition: Condition, value: Any) -> bool:
    wanted = condition.wanted
    if condition.test == "Given":
        return (value is not None) is wanted
    if condition.test == "NotIn":
        return not _among(value, wanted)
    if value is None:
        return False
    if condition.test == "In":
        return _among(value, wanted)
    if condition.test == "Below":
        return isinstance(value, (int, float)) and not isinstance(value, bool) and value < wanted
    if condition.test == "Version":
        return fits(str(value), wanted)
    return re.search(wanted, str(value), re.MULTILINE) is not None


def _among(value: Any, wanted: Iterable[Any]) -> bool:
    """Membership by type as well: 1 is not True."""
    return any(type(value) is type(each) and value == each for each in wanted)


def _words(condition: Condition, value: Any) -> str:
    name = condition.name
    if condition.thing in ("Fact", "Capability"):
        return (
            "" if condition.name == "gpu" or condition.thing == "Capability" else f"{name}: {'yes' if value else 'no'}"
        )
    if value is None:
        return f"{name} is not set"
    if condition.thing == "Package":
        return f"{name} {value}"
    if condition.thing == "File":
        pattern = condition.wanted if condition.test == "Pattern" else "."
        return f"{name}: {next((line for line in value.splitlines() if re.search(pattern, line)), '')[:120]}"
    if condition.thing == "Environment":
        return f"{name}={value}"
    return f"{name} = {str(value).lower() if isinstance(value, bool) else value}"
