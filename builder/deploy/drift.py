"""What of a deployment is not as it was deployed: the host's configuration, and the files in the container."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from builder.deploy.host.config import options
from builder.deploy.inside import plain
from builder.deploy.model import Container, Guest, Mark, Settings, from_jsonable
from builder.errors import BuilderError

_UNSET = {"firewall": "0", "onboot": "0", "type": "veth"}
"""What Proxmox takes where a key or a part of one is not there."""
_LXC: tuple[tuple[str, str, Callable[[Container], str]], ...] = (
    ("name", r"lxc\.uts\.name", lambda c: c.name.partition(".")[0]),
    ("bridge", r"lxc\.net\.0\.link", lambda c: c.network.bridge),
    ("MAC", r"lxc\.net\.0\.hwaddr", lambda c: (c.network.mac or "").lower()),
    ("onboot", r"lxc\.start\.auto", lambda c: f"{c.onboot:d}"),
    ("memory", r"lxc\.cgroup2?\.memory\.(?:max|limit_in_bytes)", lambda c: str(c.memory_mib << 20)),
)
"""Keys of lxc.container.conf(5), and what a container wants there."""


def settings(record: Mapping[str, Any]) -> Settings:
    """The settings in the record of a deployment. Raises BuilderError when this version cannot read it."""
    try:
        return from_jsonable(Settings, record["settings"])
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise BuilderError("the record in the container is of another version") from error


def of_host(guest: Guest, wanted: Settings, *, proxmox: bool, device_entries: bool = True) -> tuple[str, ...]:
    """How the host's configuration of `guest` differs from what it was deployed with; empty when it does not."""
    found = _proxmox(guest, wanted, device_entries) if proxmox else _lxc(guest, wanted)
    return (*found, *_both(guest, wanted))


def of_files(record: Mapping[str, Any], hashes: Mapping[str, Any]) -> tuple[str, ...]:
    """Files in the container whose content is not the deployed one; `hashes` are what is there now, None: nothing."""
    told = record.get("files")
    rows = told.items() if isinstance(told, Mapping) else ()
    return tuple(
        f"{plain(path)} {'was changed' if hashes.get(path) else 'is gone'}"
        for path, sha256 in rows
        if hashes.get(path) != sha256
    )


def _proxmox(guest: Guest, wanted: Settings, device_entries: bool) -> Iterator[str]:
    words = options(wanted, device_entries=device_entries)
    now = guest.config or {}
    expected = {word[2:]: value for word, value in zip(words[::2], words[1::2], strict=True)}
    for key, value in expected.items():
        if key in ("description", "tags"):
            continue
        there = now.get(key, _UNSET.get(key, ""))
        if _parts(there) != _parts(value):
            yield f"{key} is {plain(there) or 'not set'}, deployed with {value}"
    for key in sorted(now.keys() - expected.keys()):
        if re.fullmatch(r"(?:dev|mp|net)\d+", key):
            yield f"{key} was added: {plain(now[key])}"


def _parts(value: str) -> dict[str, str]:
    """A value such as ``name=eth0,ip=dhcp`` by its parts, whatever their order; defaults of Proxmox left out."""
    parts = dict(part.partition("=")[::2] for part in value.split(","))
    return {key: text.lower() for key, text in parts.items() if text.lower() != _UNSET.get(key)}


def _lxc(guest: Guest, wanted: Settings) -> Iterator[str]:
    now = guest.config or {}
    for name, pattern, want in _LXC:
        found = next((value for key, value in now.items() if re.fullmatch(pattern, key)), None)
        value = want(wanted.container)
        if found is not None and value and found.lower() != value.lower():
            yield f"{name} is {plain(found)}, deployed with {value}"


def _both(guest: Guest, wanted: Settings) -> Iterator[str]:
    there = {_spaced(line) for line in guest.raw}
    for line in dict.fromkeys((*wanted.raw, *wanted.container.raw)) if guest.raw or guest.config else ():
        if _spaced(line) not in there:
            yield f"the line {plain(line)} is gone"
    if missing := [tag for tag in wanted.tags if tag not in guest.tags]:
        yield f"without the tags {', '.join(missing)}"
    mark = Mark.find(wanted.description)
    if mark is not None and guest.mark is not None and guest.mark != mark:
        yield "the mark in its description is another than that in its record"


def _spaced(line: str) -> str:
    return " ".join(line.replace("=", ": ", 1).split()) if ": " not in line else " ".join(line.split())
