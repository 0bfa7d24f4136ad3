"""What a deploy asks of a host. `pct` (here or over ssh) and `lxc` implement it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from builder.deploy.model import Container, Guest, Settings
from builder.deploy.shell import Shell


@dataclass(frozen=True)
class Capabilities:
    """What a host can do; steps ask this, never which host it is."""

    device_entries: bool  # `dev[n]`: nodes with mode and the right major at every start; else raw lines
    proxmox: bool  # tasks, locks, storages, `pve-guests.service`
    remote: bool  # files must be sent
    version: str = ""  # as messages name it: "pve-container 5.3.5"


@dataclass(frozen=True)
class Storage:
    """A place for volumes or template files."""

    name: str
    kind: str  # dir, zfspool, lvmthin, btrfs ...
    active: bool
    free: int  # bytes
    containers: bool  # may hold their root disks
    templates: bool  # may hold template files


class Host(Protocol):
    """A machine with containers. Methods that change something go through `shell.do`, so that a dry run is the real
    code with a dry shell; all raise BuilderError with the host's own words when a command fails."""

    @property
    def name(self) -> str:
        """Short and stable, fit for a file name: ``pct``, ``ssh-root@pve``, ``lxc``."""

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def shell(self) -> Shell: ...

    # what only looks

    def guests(self) -> tuple[Guest, ...]:
        """All containers and virtual machines (of the whole cluster), with tags and description where cheap."""

    def guest(self, ctid: int) -> Guest | None:
        """One with its whole configuration; None when the id is free."""

    def storages(self) -> tuple[Storage, ...]:
        """All storages of the node."""

    def problems(self, container: Container) -> tuple[str, ...]:
        """What of `container` this host would refuse, each with the way out: bridge, storage, quorum, versions."""

    def find_upload(self, name: str, sha256: str) -> str | None:
        """Where a template's file already lies with exactly this content: a volume id or path. None: nowhere."""

    def can_link(self, template: int, storage: str | None) -> bool:
        """Whether a linked clone of this template is possible, and on `storage` where one is named."""

    # what changes

    def upload(self, file: Path, sha256: str, run: str) -> str:
        """Bring a template's file onto the host for `run`, verified there; where it lies. Overwrites no other file."""

    def forget_upload(self, name: str, sha256: str, run: str) -> bool:
        """Remove what `upload` brought for `run`, whole or cut short; whether there was anything."""

    def create(self, container: Container, volume: str, settings: Settings) -> None:
        """A new stopped container from a template's file. Never a size-0 directory root."""

    def make_template(self, ctid: int) -> None:
        """Turn a stopped container into one that is only cloned."""

    def clone(self, template: int, container: Container, *, full: bool, description: str) -> None:
        """A new container from a template: id and host name of `container`. Waits its turn where another clone runs.

        `description` holds the mark: a clone that was cut short must show whose it is."""

    def configure(self, settings: Settings) -> None:
        """Set network with MAC, memory, cores, tags, description, devices and raw lines of a stopped container.

        Grows the root disk to `root_gib` where the host can."""

    def describe(self, ctid: int, description: str, tags: tuple[str, ...]) -> None:
        """Put these in place of a container's description and tags, running or not."""

    def set_onboot(self, ctid: int, onboot: bool) -> None:
        """Whether it starts with the host."""

    def start(self, ctid: int) -> None:
        """Start it; done when its init runs. Raises BuilderError with the last lines of the host's log."""

    def stop(self, ctid: int, *, timeout: int = 60) -> None:
        """Shut it down, hard after `timeout` seconds; nothing when it does not run."""

    def destroy(self, ctid: int) -> None:
        """Remove a stopped container and its volumes."""

    def recover(self, ctid: int, template: int | None) -> None:
        """Take away what a killed create or clone left: own stale locks, mounts, half volumes. Nothing is running
        on it when this is called; looks at the host's tasks first and refuses while one is."""

    # inside a container

    def inside(self, ctid: int, argv: Sequence[str]) -> tuple[str, ...]:
        """The command of the host that runs `argv` as the container's root with a clean environment; its status is
        `argv`'s. Give it to `shell.ask` or `shell.do`."""
