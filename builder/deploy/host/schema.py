"""Checks of every command for Proxmox VE against Proxmox's own schema, before anything runs.

Only spellings that cannot be misread are let through: the program, its command, the positional arguments, options as
``--name value`` (a boolean may stand alone), and ``--`` before a command for a container. What is stricter than
Proxmox: each option once, values on one line (but for descriptions) and in ASCII, since with LC_ALL=C Proxmox would
store something else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from builder.deploy.host import formats
from builder.errors import UsageError
from builder.recipe.document import nearest

MAJORS = (8, 9)
"""The versions of Proxmox VE whose schema is here."""
_PROGRAMS = ("pct", "pvesm", "pveam", "pvesh")
_TRUE, _FALSE = ("1", "on", "yes", "true"), ("0", "off", "no", "false")
_OUTPUT = {"output-format": {"type": "string", "enum": ["text", "json", "json-pretty", "yaml"], "optional": True}}

Rule = Mapping[str, Any]
"""What the schema says of one value: type, limits, format; `keys` for ``KEY=VALUE,...``."""


@dataclass(frozen=True)
class Command:
    """One command of Proxmox."""

    name: str  # as typed: "pct set"
    arguments: tuple[str, ...]  # positional, in order
    options: Mapping[str, Rule]  # by name; "net[n]" stands for net0, net1 ...
    values: Mapping[str, str]  # those in the path of `pvesh get`


def checker(major: int) -> Callable[[Sequence[str]], None]:
    """A check of commands for Proxmox VE `major`; those of other programs pass.

    It raises UsageError naming the option, its value and what is allowed. Raises KeyError for an unknown `major`.
    """
    schema = _schema(major)

    def check(argv: Sequence[str]) -> None:
        if not argv or argv[0] not in _PROGRAMS:
            return
        command, rest = _command(schema, major, argv)
        _check(command, rest)

    return check


@cache
def _schema(major: int) -> Mapping[str, Any]:
    if major not in MAJORS:
        raise KeyError(major)
    text = (resources.files("builder") / "data" / f"pve-schema-{major}.json").read_text("utf-8")
    schema: Mapping[str, Any] = json.loads(text)
    return schema


def _command(schema: Mapping[str, Any], major: int, argv: Sequence[str]) -> tuple[Command, list[str]]:
    if argv[0] == "pvesh":
        return _path(schema, major, argv)
    name = " ".join(argv[:2])
    found = schema["commands"].get(name)
    if found is None:
        raise UsageError(f"Proxmox VE {major} has no such command", where=name, hint=_near(name, schema["commands"]))
    options = {**{key: schema["config"][key] for key in found.get("config", ())}, **found["options"]}
    return Command(name, tuple(found["arguments"]), options, {}), list(argv[2:])


def _path(schema: Mapping[str, Any], major: int, argv: Sequence[str]) -> tuple[Command, list[str]]:
    if len(argv) < 3 or argv[1] != "get":
        raise UsageError("only `pvesh get PATH` is used here", where=" ".join(argv[:2]))
    given = argv[2].strip("/").split("/")
    for path, options in schema["paths"].items():
        wanted = path.strip("/").split("/")
        if len(wanted) != len(given):
            continue
        pairs = list(zip(wanted, given, strict=True))
        if all(part == value or part.startswith("{") for part, value in pairs):
            values = {part[1:-1]: value for part, value in pairs if part.startswith("{")}
            return Command(f"pvesh get {path}", (), {**options, **_OUTPUT}, values), list(argv[3:])
    hint = _near(argv[2], schema["paths"])
    raise UsageError(f"Proxmox VE {major} has no such path, or it is not used here", where=argv[2], hint=hint)


def _check(command: Command, words: Sequence[str]) -> None:
    positional, given = _sort(command, words)
    names = [name for name in command.arguments if name != "extra-args"]
    for name in names[len(positional) :]:
        if not command.options[name].get("optional"):
            raise UsageError(f"needs <{name}>", where=command.name)
    for name, value in (*zip(names, positional, strict=False), *command.values.items()):
        _check_value(command, f"<{name}>", command.options[name], value)
    for option, value in given.items():
        _check_value(command, f"--{option}", command.options[_key(command, option)], value)
    have = {*(_key(command, option) for option in given), *names[: len(positional)], *command.values}
    for name, rule in command.options.items():
        if name in have and rule.get("requires", name) not in have:
            raise UsageError(f"--{name} needs --{rule['requires']}", where=command.name)
        if name not in have and name not in command.arguments and not rule.get("optional"):
            raise UsageError(f"needs --{name}", where=command.name)


def _sort(command: Command, words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The positional arguments and the options. A command for a container (``extra-args``) is left alone."""
    positional: list[str] = []
    given: dict[str, str] = {}
    left = list(words)
    while left:
        word = left.pop(0)
        if word == "--":
            if "extra-args" not in command.arguments:
                positional += left
            elif not left:
                raise UsageError("needs a command behind --", where=command.name)
            break
        if not word.startswith("-"):
            positional.append(word)
            continue
        name, equals, value = word.removeprefix("-").removeprefix("-").partition("=")
        key = _key(command, name)
        if name in given:
            raise UsageError(f"--{name} is given twice", where=command.name)
        if equals:
            given[name] = value
        elif command.options[key]["type"] == "boolean" and (not left or left[0].startswith("-")):
            given[name] = "1"
        elif left:
            given[name] = left.pop(0)
        else:
            raise UsageError(f"--{name} needs a value", where=command.name)
    allowed = len(command.arguments) - ("extra-args" in command.arguments)
    if len(positional) > allowed:
        hint = "write -- before a command for the container" if allowed < len(command.arguments) else None
        raise UsageError(f"does not take the argument {positional[allowed]!a}", where=command.name, hint=hint)
    return positional, given


def _key(command: Command, name: str) -> str:
    """The schema's name of an option: ``net[n]`` for ``net0``."""
    if name in command.options and name not in command.arguments and not name.endswith("[n]"):
        return name
    numbered = re.fullmatch(r"([a-z]+)(0|[1-9][0-9]*)", name)
    if numbered:
        key = f"{numbered[1]}[n]"
        if key in command.options:
            last = command.options[key]["last"]
            if int(numbered[2]) > last:
                raise UsageError(f"--{name} is one too many: the last is --{numbered[1]}{last}", where=command.name)
            return key
    known = [each.replace("[n]", "0") for each in command.options if each not in command.arguments]
    raise UsageError(f"has no option --{name}", where=command.name, hint=_near(name, known))


def _check_value(command: Command, name: str, rule: Rule, value: str) -> None:
    what = _problem(rule, value, lines=name == "--description")
    if what is not None:
        shown = value if len(value) <= 80 else f"{value[:80]}..."
        raise UsageError(f"{name} {shown!a}: {what}", where=command.name)


def _problem(rule: Rule, value: str, *, lines: bool = False) -> str | None:
    """What is wrong with a value; None when nothing is."""
    if not value.isascii() or "\0" in value:
        return "must be ASCII"
    if not lines and not value.isprintable():
        return "must be one line without control characters"
    if "keys" in rule:
        return _property_problem(rule["keys"], value)
    kind = rule["type"]
    if kind == "boolean":
        return None if value.lower() in (*_TRUE, *_FALSE) else "must be 1 or 0"
    if kind in ("integer", "number"):
        return _number_problem(rule, kind, value)
    if "enum" in rule:
        return None if value in rule["enum"] else f"must be one of {_listed(rule['enum'])}"
    low, high = rule.get("minLength", 0), rule.get("maxLength")
    if len(value) < low or (high is not None and len(value) > high):
        return f"must have {low} to {high} characters"
    if "pattern" in rule and not re.fullmatch(rule["pattern"], value, re.ASCII):
        return f"must match {rule['pattern']}"
    return formats.problem(rule["format"], value) if "format" in rule else None


def _number_problem(rule: Rule, kind: str, value: str) -> str | None:
    number = r"[+-]?\d+" if kind == "integer" else r"[+-]?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][+-]?\d+)?"
    low, high = rule.get("minimum"), rule.get("maximum")
    if not re.fullmatch(number, value, re.ASCII):
        return "must be a whole number" if kind == "integer" else "must be a number"
    if (low is not None and float(value) < low) or (high is not None and float(value) > high):
        return f"must be at least {low}" if high is None else f"must be from {low} to {high}"
    return None


def _property_problem(keys: Mapping[str, Rule], value: str) -> str | None:
    """Of ``KEY=VALUE,KEY=VALUE``, where one value may go without its key (PVE::JSONSchema::parse_property_string)."""
    default = next((name for name, rule in keys.items() if rule.get("default_key")), None)
    found: dict[str, str] = {}
    for part in value.split(","):
        key, equals, inner = part.partition("=")
        if not equals:
            if default is None:
                return f"{part!a} must be written KEY=VALUE with one of {_listed(keys)}"
            key, inner = default, part
        if key not in keys:
            near = _near(key, keys)
            return f"has no key {key!a}: {near}"
        if key in found:
            return f"{key} is given twice"
        found[key] = inner
        what = "must not be empty" if not inner else _problem(keys[key], inner)
        if what is not None:
            return f"{key}={inner}: {what}"
    missing = [key for key, rule in keys.items() if not rule.get("optional") and key not in found]
    return f"needs {missing[0]}=" if missing else None


def _near(word: str, known: Iterable[str]) -> str:
    close = nearest(word, known)
    return f"did you mean {close}?" if close else f"known are {_listed(known)}"


def _listed(words: Iterable[str]) -> str:
    every = sorted(words)
    return ", ".join(every[:12]) + (" ..." if len(every) > 12 else "")
