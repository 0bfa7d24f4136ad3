"""Containers of Proxmox VE, through `pct`, `pvesm` and `pvesh` on the node itself, here or over ssh."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from builder.deploy.host import config, explain, pve, volumes
from builder.deploy.host.base import Capabilities, Storage
from builder.deploy.model import Container, Guest, Settings
from builder.deploy.shell import Shell
from builder.errors import BuilderError, UsageError

_COPY = 7200.0
"""Seconds for a copy of all of a template: a storage that takes longer hangs."""
_TURN = 7200.0
"""Seconds to wait for other clones of a template, each of which is such a copy."""
_TASKS = 600.0
"""Seconds to wait for what a killed builder left running."""
_UMOUNT = 'i=0; while mountpoint -q "$1" && [ $i -lt 9 ]; do umount -R "$1"; i=$((i+1)); done'


@dataclass(frozen=True)
class Pct:
    """One node of Proxmox VE. What is on other nodes of its cluster is listed, never touched."""

    name: str
    shell: Shell
    capabilities: Capabilities
    sleep: Callable[[float], None] = time.sleep
    say: Callable[[str], None] = lambda line: None
    """Gets what is waited for."""

    # what only looks

    def guests(self) -> tuple[Guest, ...]:
        """All containers and machines of the cluster, without descriptions."""
        return tuple(_listed(entry) for entry in pve.get(self.shell, "/cluster/resources", "--type", "vm"))

    def guest(self, ctid: int) -> Guest | None:
        """A container of this node with its whole configuration; anything else as in `guests`."""
        found = self._config(ctid)
        if found is None:
            return next((guest for guest in self.guests() if guest.ctid == ctid), None)
        guest = found.guest(ctid, running=False)
        if guest.template:
            return guest
        running = self._runs(ctid)
        return self.guest(ctid) if running is None else replace(guest, running=running)

    def storages(self) -> tuple[Storage, ...]:
        """All storages of the node, by name."""
        return volumes.storages(self.shell)

    def problems(self, container: Container) -> tuple[str, ...]:
        """What this node would refuse, each with the way out."""
        ctid, settings = container.ctid, Settings(container, container.tags, "")
        found: list[str] = []
        found += _told(lambda: self.shell.check(self._clone(container.template or ctid, container, True, "")))
        found += _told(lambda: self.shell.check(self._set(settings)))
        found += _told(lambda: [config.raw_line(line) for line in container.raw])
        members = json.loads(self.shell.ask("cat", "/etc/pve/.members").check().text)
        if not members.get("cluster", {"quorate": 1}).get("quorate"):
            found.append("the cluster has no quorum, nothing can be changed: `pvecm status`")
        found += self._bridge_problems(container)
        for folder in container.models:
            if self.shell.ask("test", "-d", folder.source).status != 0:
                found.append(f"folder {folder.source} is not on the host: make it, or correct Models")
        every = self.storages()
        found += self._storage_problems(every, container)
        found += _told(lambda: self._refuse_leftovers(ctid, every))
        return tuple(dict.fromkeys(found))

    def find_upload(self, name: str, sha256: str) -> str | None:
        """The volume with this content under `name`."""
        return volumes.find(self.shell, self.storages(), name, sha256)

    def can_link(self, template: int, storage: str | None) -> bool:
        """Whether the template's storage has linked clones, and is the one that is wanted: they lie where it does."""
        found = self._config(template)
        if found is not None and storage not in (None, found.keys.get("rootfs", "").partition(":")[0]):
            return False
        answer = pve.get(self.shell, f"{pve.NODE}/lxc/{template}/feature", "--feature", "clone")
        return bool(answer["hasFeature"])

    # what changes

    def upload(self, file: Path, sha256: str, run: str) -> str:
        """Into a storage for templates; the volume."""
        return volumes.upload(self.shell, file, sha256, run)

    def forget_upload(self, name: str, sha256: str, run: str) -> bool:
        """Remove the run's own file, by the name that no other run gives."""
        return volumes.forget(self.shell, name, run)

    def create(self, container: Container, volume: str, settings: Settings) -> None:
        """Unpack a template's file into a new root disk; always said whether unprivileged, never of size 0."""
        ctid = container.ctid
        if container.root_gib < 1:
            raise UsageError("a root disk needs 1 GiB or more", where=f"container {ctid}", hint="set RootGiB")
        every = self.storages()
        self._refuse_leftovers(ctid, every)
        rootfs = f"{volumes.root_storage(every, container).name}:{container.root_gib}"
        own = ("--rootfs", rootfs, "--unprivileged", f"{container.unprivileged:d}")
        pve.do(self.shell, ctid, "pct", "create", str(ctid), volume, *own, *self._options(settings), timeout=_COPY)
        self._add_raw(settings)

    def make_template(self, ctid: int) -> None:
        """Its disk becomes read-only; there is no way back."""
        pve.do(self.shell, ctid, "pct", "template", str(ctid))

    def clone(self, template: int, container: Container, *, full: bool, description: str) -> None:
        """Proxmox locks a template for the whole copy and refuses a second one at once: that waits here."""
        ctid, deadline = container.ctid, time.monotonic() + _TURN
        self._refuse_leftovers(ctid, self.storages())
        while True:
            done = self.shell.do(*self._clone(template, container, full, description), timeout=_COPY)
            if done.status == 0:
                return
            if b"CT is locked (disk)" not in done.err or time.monotonic() > deadline:
                raise explain.failure(done, ctid)
            self._wait_turn(template)

    def configure(self, settings: Settings) -> None:
        """Everything in one `pct set`, then the raw lines, which Proxmox has no command for, then the size."""
        ctid = settings.container.ctid
        current = self._config(ctid)
        settings = config.with_mac(settings, current.mac if current else None)
        pve.do_with_devices(self.shell, ctid, *self._set(settings), sleep=self.sleep)
        self._add_raw(settings)
        wanted = settings.container.root_gib
        if current is None or current.root_size < wanted * volumes.GIB:
            done = pve.do(self.shell, ctid, "pct", "resize", str(ctid), "rootfs", f"{wanted}G")
            if b"Failed to update the container's filesystem" in done.err + done.out:
                raise explain.failure(done, ctid)

    def describe(self, ctid: int, description: str, tags: tuple[str, ...]) -> None:
        """Put these in place of a container's description and tags."""
        pve.do(self.shell, ctid, "pct", "set", str(ctid), "--description", description, "--tags", ";".join(tags))

    def set_onboot(self, ctid: int, onboot: bool) -> None:
        """Whether it starts with the host; also of one whose card is away, for which Proxmox refuses every change."""
        done = self.shell.do("pct", "set", str(ctid), "--onboot", f"{onboot:d}", timeout=600)
        if done.status == 0:
            return
        if not re.search(rb"Device \S+ does not exist", done.err):
            raise explain.failure(done, ctid)
        self.shell.do(*config.set_key(ctid, "onboot", f"{onboot:d}"), timeout=60).check()

    def start(self, ctid: int) -> None:
        """Done when its init runs; one that runs already is left alone."""
        argv = ("pct", "start", str(ctid))
        pve.do_with_devices(self.shell, ctid, *argv, sleep=self.sleep, fine=f"CT {ctid} already running")

    def stop(self, ctid: int, *, timeout: int = 60) -> None:
        """Shut down, hard after `timeout` seconds."""
        argv = ("pct", "shutdown", str(ctid), "--timeout", str(timeout), "--forceStop", "1")
        pve.do(self.shell, ctid, *argv, timeout=timeout + 120, fine=f"CT {ctid} not running")

    def destroy(self, ctid: int) -> None:
        """Out of backup jobs, replication and HA as well. Proxmox refuses one that runs."""
        pve.do(self.shell, ctid, "pct", "destroy", str(ctid), "--purge", "1")

    def recover(self, ctid: int, template: int | None) -> None:
        """Wait until no task works on it, then take away a half-made container and stale locks.

        A container without a lock is whole and left alone. Raises BuilderError when a task does not end, or the lock
        belongs to other work.
        """
        ids = {str(each) for each in (ctid, template) if each is not None}

        def busy() -> list[pve.Task]:
            half = self._lock(ctid) == "create"  # then a clone of whatever template may be writing it
            return [task for task in pve.tasks(self.shell) if task.guest in ids or (half and task.kind == "vzclone")]

        self._wait_until(busy, _TASKS, f"container {ctid}")
        lock = self._lock(ctid)
        if lock == "create":
            self._unlock(ctid)
            self.shell.do("sh", "-ec", _UMOUNT, "sh", f"/var/lib/lxc/{ctid}/rootfs").check()
            rest = ("--purge", "1", "--destroy-unreferenced-disks", "1")
            pve.do(self.shell, ctid, "pct", "destroy", str(ctid), *rest)
        elif lock == "disk":
            self._unlock(ctid)
        elif lock:
            hint = f"wait until that is over; after a crash `pct unlock {ctid}` on the host"
            raise BuilderError(f"is locked ({lock})", where=f"container {ctid}", hint=hint)
        if template is not None and self._lock(template) == "disk":
            self._unlock(template)

    # inside a container

    def inside(self, ctid: int, argv: Sequence[str]) -> tuple[str, ...]:
        """Run as the container's root, with nothing of the host's environment."""
        return ("pct", "exec", str(ctid), "--keep-env", "0", "--", *argv)

    # pieces

    def _config(self, ctid: int) -> config.Config | None:
        """The configuration of a container of this node."""
        done = self.shell.ask("cat", f"/etc/pve/lxc/{ctid}.conf")
        if done.status == 0:
            return config.parse(done.out.decode(errors="replace"))
        if b"No such file" in done.err:
            return None
        raise explain.failure(done, ctid)

    def _runs(self, ctid: int) -> bool | None:
        """None: it was taken away since its configuration was read, as Proxmox does with a clone that is cut short."""
        done = self.shell.ask("pct", "status", str(ctid))
        if done.status != 0:
            if b"does not exist" in done.err:
                return None
            raise explain.failure(done, ctid)
        return done.text.strip() == "status: running"

    def _lock(self, ctid: int) -> str:
        found = self._config(ctid)
        return found.keys.get("lock", "") if found else ""

    def _unlock(self, ctid: int) -> None:
        pve.do(self.shell, ctid, "pct", "unlock", str(ctid), fine="no lock found")

    def _options(self, settings: Settings) -> list[str]:
        return config.options(settings, device_entries=self.capabilities.device_entries)

    def _set(self, settings: Settings) -> tuple[str, ...]:
        return ("pct", "set", str(settings.container.ctid), *self._options(settings))

    def _clone(self, template: int, container: Container, full: bool, description: str) -> tuple[str, ...]:
        storage = ("--storage", container.storage) if full and container.storage else ()
        own = ("--hostname", container.name, "--description", description, "--full", f"{full:d}", *storage)
        return ("pct", "clone", str(template), str(container.ctid), *own)

    def _add_raw(self, settings: Settings) -> None:
        """Add raw lines, and see that Proxmox takes each: it drops what it does not know at its next write."""
        ctid, lines = settings.container.ctid, [config.raw_line(line) for line in settings.raw]
        if not self.capabilities.device_entries:
            for device in settings.devices:
                major = self.shell.ask("stat", "-c", "%t", device.path).check("make the node on the host").text
                lines += config.device_lines(device, int(major, 16))
        if not lines:
            return
        lines = list(dict.fromkeys(lines))
        self.shell.do(*config.add_raw(ctid, lines)).check()
        if self.shell.dry:
            return
        taken = self.shell.ask("pct", "config", str(ctid)).check().text.splitlines()
        refused = [line for line in lines if line not in taken]
        if refused:
            what = f"Proxmox does not take the raw line {refused[0]!a}"
            raise BuilderError(what, where=f"container {ctid}", hint="`man lxc.container.conf` has the keys")

    def _refuse_leftovers(self, ctid: int, every: Sequence[Storage]) -> None:
        """A half-made container is removed with all volumes of its id: there must be none from before."""
        found = volumes.leftovers(self.shell, every, ctid) if self._config(ctid) is None else ()
        if found:
            hint = f"if nobody needs them: `pvesm free {found[0]}` on the host"
            what = f"volumes of an earlier container with this id are there: {', '.join(found)}"
            raise BuilderError(what, where=f"container {ctid}", hint=hint)

    def _wait_turn(self, template: int) -> None:
        """Until no task works on the template; a lock that then stays is a crashed clone's and is taken off."""

        def busy() -> list[pve.Task]:
            return [task for task in pve.tasks(self.shell) if task.guest == str(template)]

        for _ in range(2):
            self.sleep(2)
            self._wait_until(busy, _TURN, f"template {template}")
            if self._lock(template) != "disk":
                return
        found = self._config(template)
        if found is not None and found.guest(template, running=False).mark is not None:
            self._unlock(template)

    def _wait_until(self, none: Callable[[], Sequence[pve.Task]], seconds: float, where: str) -> None:
        pve.wait_until(none, seconds=seconds, where=where, sleep=self.sleep, say=self.say)

    def _bridge_problems(self, container: Container) -> list[str]:
        bridge, mtu = container.network.bridge, container.network.mtu
        found = self.shell.ask("cat", f"/sys/class/net/{bridge}/mtu")
        if found.status != 0:
            return [f"bridge {bridge} is not on the host: `ip -br link show type bridge` lists them"]
        if mtu is not None and mtu > int(found.text):
            return [f"MTU {mtu} is above {found.text}, that of bridge {bridge}: lower it, or raise the bridge's"]
        return []

    def _storage_problems(self, every: Sequence[Storage], container: Container) -> list[str]:
        try:
            storage = volumes.root_storage(every, container)
        except BuilderError as error:
            return [str(error)]
        free = storage.free / volumes.GIB
        if free < container.root_gib:
            room = f"storage {storage.name} has {free:.1f} GiB free, the root disk may grow to {container.root_gib}"
            return [f"{room}: make room, take another storage, or a smaller RootGiB"]
        return []


def _listed(entry: Mapping[str, Any]) -> Guest:
    """A guest as /cluster/resources has it; one made just now has no name there."""
    return Guest(
        ctid=int(entry["vmid"]),
        name=entry.get("name") or str(entry["vmid"]),
        kind=entry["type"],
        running=entry.get("status") == "running",
        template=bool(int(entry.get("template") or 0)),
        lock=entry.get("lock") or "",
        tags=config.split_tags(entry.get("tags") or ""),
    )


def _told(check: Callable[[], object]) -> list[str]:
    """What `check` has against it."""
    try:
        check()
    except BuilderError as error:
        return [str(error)]
    return []
