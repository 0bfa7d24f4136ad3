"""The command line of `pct`, read and checked as Proxmox does, with its words for what it does not take."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from .state import RefusedError, not_simulated, pairs

_CONFIG = (
    *("hostname", "description", "tags", "memory", "swap", "cores", "features", "unprivileged", "onboot", "startup"),
    *("nameserver", "searchdomain", "protection", "net[n]", "dev[n]", "mp[n]"),
)
COMMANDS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "create": (("vmid", "ostemplate"), ("rootfs", *_CONFIG)),
    "set": (("vmid",), (*_CONFIG, "delete", "digest")),
    "template": (("vmid",), ()),
    "clone": (("vmid", "newid"), ("hostname", "description", "full", "storage")),
    "resize": (("vmid", "disk", "size"), ()),
    "start": (("vmid",), ()),
    "stop": (("vmid",), ()),
    "shutdown": (("vmid",), ("timeout", "forceStop")),
    "destroy": (("vmid",), ("force", "purge", "destroy-unreferenced-disks")),
    "unlock": (("vmid",), ()),
    "status": (("vmid",), ()),
    "config": (("vmid",), ("current",)),
    "exec": (("vmid",), ("keep-env",)),
    "push": (("vmid", "file", "destination"), ("perms", "user", "group")),
}
_SWITCHES = ("full", "force", "purge", "destroy-unreferenced-disks", "forceStop", "keep-env", "current")
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"


def parse(argv: Sequence[str]) -> tuple[str, list[str], dict[str, str], list[str]]:
    """Command, arguments, options, and what stands behind ``--``. Raises RefusedError in Proxmox's words."""
    if not argv or argv[0] not in COMMANDS:
        raise not_simulated(f"pct {' '.join(argv)}")
    command, words = argv[0], list(argv[1:])
    names, known = COMMANDS[command]
    rest = words[words.index("--") + 1 :] if "--" in words else []
    words = words[: words.index("--")] if "--" in words else words
    arguments, options = _split(command, words, known)
    if command == "exec":
        arguments, rest = arguments[:1], [*arguments[1:], *rest]
    if len(arguments) != len(names):
        raise RefusedError(f"400 not enough arguments\n{_usage(command)}")
    wrong = [line for name, value in options.items() for line in _wrong(name, value)]
    wrong += [line for name, value in zip(names, arguments, strict=True) for line in _wrong(name, value)]
    if wrong:
        raise RefusedError("\n".join(("400 Parameter verification failed.", *wrong, _usage(command))))
    return command, arguments, options, rest


def _split(command: str, words: list[str], known: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    arguments, options = [], {}
    while words:
        word = words.pop(0)
        name = word.lstrip("-")
        if not word.startswith("-"):
            arguments.append(word)
        elif re.sub(r"\d+$", "[n]", name) not in known and name not in known:
            raise RefusedError(f"Unknown option: {name}\n400 unable to parse option\n{_usage(command)}")
        elif name in _SWITCHES and (not words or words[0] not in ("0", "1")):
            options[name] = "1"
        elif words:
            options[name] = words.pop(0)
        else:
            raise RefusedError(f"Option {name} requires an argument\n400 unable to parse option\n{_usage(command)}")
    return arguments, options


def _usage(command: str) -> str:
    names = [f"<{name}>" for name in COMMANDS[command][0]]
    more = ["[<extra-args>]"] if command == "exec" else []
    return " ".join(["pct", command, *names, *more, "[OPTIONS]"])


def tags(text: str) -> list[str]:
    return sorted({tag.lower() for tag in re.split(r"[,;\s]+", text) if tag})


def _wrong(name: str, value: str) -> Iterator[str]:
    key = re.sub(r"\d+$", "", name)
    if key in ("vmid", "newid") and not re.fullmatch(r"[1-9][0-9]{2,8}", value):
        yield f"{name}: invalid format - value does not look like a valid VM ID"
    elif key == "hostname" and not re.fullmatch(rf"{_LABEL}(?:\.{_LABEL})*", value):
        yield f"{name}: invalid format - value does not look like a valid DNS name"
    elif key == "tags" and not all(re.fullmatch(r"[a-z0-9_][a-z0-9_+.-]*", tag) for tag in tags(value)):
        yield f"{name}: invalid format - invalid characters in tag"
    elif key in _LEAST and int(value) < _LEAST[key]:
        yield f"{name}: value must have a minimum value of {_LEAST[key]}"
    elif key in _PARTS:
        parts = list(_PARTS[key](pairs(value, "path")))
        if parts:
            yield f"{name}: invalid format - format error"
            yield from (f"{name}.{part}" for part in parts)


def _net(values: Mapping[str, str]) -> Iterator[str]:
    if not re.fullmatch(r"dhcp|manual|\d+(?:\.\d+){3}/\d+", values.get("ip", "manual")):
        yield "ip: invalid format - value does not look like a valid ipv4 network configuration"


def _dev(values: Mapping[str, str]) -> Iterator[str]:
    if not values["path"].startswith("/dev/"):
        yield f"path: invalid format - {values['path']} is not a valid device path"
    if not re.fullmatch(r"0[0-7]{3}", values.get("mode", "0660")):
        yield "mode: value does not match the regex pattern"


_LEAST = {"memory": 16, "cores": 1}
_PARTS: Mapping[str, Callable[[Mapping[str, str]], Iterator[str]]] = {"net": _net, "dev": _dev}
