"""What a deployment is made of: containers as asked for, guests as found, the mark that says whose a guest is."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

MARK = "builder:"
"""Begins the line of a guest's description that holds its `Mark` as JSON."""


@dataclass(frozen=True)
class Network:
    """One network card of a container."""

    name: str = "eth0"
    bridge: str = "vmbr0"
    ip: str = "dhcp"  # "dhcp", "manual" or an IPv4 address with its prefix length
    gateway: str | None = None
    mac: str | None = None  # None: one is derived, see `builder.deploy.addresses`
    vlan: int | None = None  # 1 to 4094
    mtu: int | None = None
    firewall: bool = False
    nameservers: tuple[str, ...] = ()  # empty: the host's
    searchdomain: str | None = None


@dataclass(frozen=True)
class Folder:
    """A folder of the host that a container sees read-only, such as the models."""

    source: str  # on the host, absolute
    target: str  # in the container, absolute


@dataclass(frozen=True)
class Container:
    """A container as its entry asks for it, every default filled in."""

    ctid: int
    name: str  # host name, and the deployment's name: its tag is ``builder-NAME``
    template: int | None = None  # the entry that it is a clone of; None for a template itself
    profile: str | None = None
    network: Network = Network()
    memory_mib: int = 16384
    swap_mib: int = 0
    cores: int = 4
    storage: str | None = None  # None: the one with most room of those that hold containers
    root_gib: int = 32
    gpus: tuple[int, ...] | None = None  # indices; None: as many as the profile wants, the emptiest; (): none
    models: tuple[Folder, ...] = ()
    unprivileged: bool = True
    nesting: bool = True
    onboot: bool = False
    order: int | None = None  # of start at boot
    delay: int | None = None  # seconds to the next start at boot
    tags: tuple[str, ...] = ()
    raw: tuple[str, ...] = ()  # further ``lxc.KEY: VALUE`` lines


@dataclass(frozen=True)
class Mark:
    """Says of a guest that the builder made it, from what and for what. Kept in the guest's description."""

    run: str  # id of the deploy that made it
    name: str  # the deployment's
    role: str  # "template" or "server"
    digest: str  # sha256 of the template's file
    recipe: str  # name, version and variant as in the file's name
    profile: str = ""
    gpus: tuple[int, ...] = ()
    share: float = 0.0  # of each of its cards' memory, 0 to 1
    made: str = ""  # ISO 8601, UTC
    ctid: int = 0  # of the guest that has it: a clone by hand or a restored backup has a copy

    def line(self) -> str:
        """The line for the description."""
        return f"{MARK} {json.dumps(vars(self), sort_keys=True, separators=(',', ':'))}"

    @classmethod
    def find(cls, description: str) -> Mark | None:
        """The mark in a guest's description; None when there is none, or none that this version can read.

        Such a guest is somebody else's: others write descriptions too, and theirs must not keep the builder from work.
        """
        for line in description.splitlines():
            if line.startswith(MARK):
                with suppress(ValueError, TypeError, AttributeError, RecursionError):
                    values = json.loads(line[len(MARK) :])
                    made = cls(**{**values, "gpus": tuple(values.get("gpus", ()))})
                    if all(_fits(getattr(made, name), kind) for name, kind in typing.get_type_hints(cls).items()):
                        return made
        return None


def _fits(value: Any, kind: Any) -> bool:
    if kind == tuple[int, ...]:
        return all(isinstance(each, int) for each in value)
    return isinstance(value, (int, float) if kind is float else kind)


@dataclass(frozen=True)
class Guest:
    """A container or virtual machine as the host has it."""

    ctid: int
    name: str
    kind: str = "lxc"  # "lxc" or "qemu"
    running: bool = False
    template: bool = False
    lock: str = ""  # Proxmox's: disk, create, backup ...
    tags: tuple[str, ...] = ()
    description: str = ""
    config: Mapping[str, str] | None = None  # the host's own keys as they are; None where only a list was asked for
    raw: tuple[str, ...] = ()  # ``lxc.KEY: VALUE``

    @property
    def onboot(self) -> bool:
        """Whether it starts with the host, as Proxmox or LXC say it."""
        config = self.config or {}
        return "1" in (config.get("onboot"), config.get("lxc.start.auto"))

    @property
    def mark(self) -> Mark | None:
        """Whose it is, see `Mark.find`; that of another guest says nothing of a copy of it."""
        found = Mark.find(self.description)
        return found if found is not None and found.ctid in (0, self.ctid) else None


@dataclass(frozen=True)
class Device:
    """A device node of the host that a container gets."""

    path: str  # the same on both sides
    mode: str = "0666"  # four digits: a service that is not root opens it


@dataclass(frozen=True)
class Settings:
    """What `configure` sets on a container that was just cloned."""

    container: Container
    tags: tuple[str, ...]
    description: str
    devices: tuple[Device, ...] = ()
    raw: tuple[str, ...] = ()  # ``lxc.KEY: VALUE`` lines to add, mounts of folders among them


@dataclass(frozen=True)
class File:
    """A file to be written into a container."""

    path: str  # absolute, in the container
    content: bytes
    mode: int = 0o644
    owner: str = "root"
    group: str = "root"
    secret: bool = False  # never shown, never kept in a journal


def jsonable(value: Any) -> Any:
    """`value` as JSON knows it: dataclasses as objects, tuples as lists."""
    if hasattr(value, "__dataclass_fields__"):
        return {name: jsonable(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    return value


T = TypeVar("T")


def from_jsonable(kind: type[T], value: Any) -> T:
    """The dataclass of type `kind` that `jsonable` made `value` of. Raises TypeError, KeyError or ValueError."""
    made: T = _read(kind, value)
    return made


def _read(kind: Any, value: Any) -> Any:
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        inner = [each for each in typing.get_args(kind) if each is not type(None)]
        return None if value is None else _read(inner[0], value) if len(inner) == 1 else value
    if origin is tuple:
        return tuple(_read(typing.get_args(kind)[0], item) for item in value)
    if hasattr(kind, "__dataclass_fields__"):
        hints = typing.get_type_hints(kind)
        return kind(**{name: _read(hints[name], item) for name, item in value.items()})
    return value
