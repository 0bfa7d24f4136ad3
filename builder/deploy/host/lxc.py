"""Plain LXC (Debian's, version 4 or later) as a host: real containers without Proxmox.

A container is the folder ROOT/CTID with LXC's `config`, its `rootfs` (a linked clone: `delta`, over its template's
`rootfs`) and `builder.json`, which says whose it is. The folder appears with `builder.json` in it and gets its `config`
last; what has no `config` was not finished. Whatever works on a container for long holds flock(2) on its folder.

Unprivileged containers need root's ids in /etc/subuid and /etc/subgid, as LXC's own start of them at boot does;
`Lxc.problems` names the command that allows them. There are no quotas (`root_gib`), storages or firewalls.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from builder.command import tail
from builder.deploy.host import lxc_config, lxc_scripts
from builder.deploy.host.base import Capabilities, Storage
from builder.deploy.host.lxc_config import FIRST_ID, IDS, ONLY_CLONED, Node
from builder.deploy.host.lxc_scripts import CLONED, FIRST
from builder.deploy.model import Container, Device, Guest, Settings, jsonable
from builder.deploy.shell import Done, LostError, Shell
from builder.errors import BuilderError

ROOT = Path("/var/lib/lxc")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_IDMAP = ("lxc-usernsexec", "-m", f"u:0:{FIRST_ID}:{IDS}", "-m", f"g:0:{FIRST_ID}:{IDS}", "--")
_TAR = (
    *("tar", "xpf", "-", "--zstd", "--totals", "--one-file-system", "-p", "--sparse", "--numeric-owner", "--acls"),
    *("--xattrs", "--xattrs-include=user.*", "--xattrs-include=security.capability"),
    *("--warning=no-file-ignored", "--warning=no-xattr-write"),
)
"""The call of `pct create` (pve-container, PVE::LXC::Create)."""
_COPY = 7200.0
"""Seconds for a copy of all of a template: a disk that takes longer hangs."""
_WAIT = 600
"""Seconds that `recover` gives to what a killed builder left running."""


@dataclass(frozen=True)
class Lxc:
    """Containers of LXC in the folder `root`, for root."""

    shell: Shell
    root: Path = ROOT

    @property
    def name(self) -> str:
        """For another folder than LXC's own its path, and what tells /a/b from /a-b."""
        path = str(self.root)
        return "lxc" if self.root == ROOT else f"lxc{path.replace('/', '-')}-{sha256(path.encode()).hexdigest()[:8]}"

    @property
    def capabilities(self) -> Capabilities:
        version = self.shell.ask("lxc-start", "--version").text
        return Capabilities(device_entries=True, proxmox=False, remote=False, version=f"LXC {version}")

    # what only looks

    def guests(self) -> tuple[Guest, ...]:
        """All containers with a number for a name, the builder's or not."""
        return self._look("*")

    def guest(self, ctid: int) -> Guest | None:
        return next((guest for guest in self._look(str(ctid)) if guest.ctid == ctid), None)

    def storages(self) -> tuple[Storage, ...]:
        """The one that there is, of kind `overlay` where linked clones are possible, else `dir`."""
        done = self.shell.ask("df", "--block-size=1", "--output=avail", str(self.root))
        there = done.status == 0
        kind = "overlay" if self._links() else "dir"
        return (Storage("lxc", kind, there, int(done.text.split()[-1]) if there else 0, True, True),)

    def problems(self, container: Container) -> tuple[str, ...]:
        nodes = [f"/dev/nvidia{index}" for index in container.gpus or ()]
        nodes += ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"] if nodes else []
        bridge = container.network.bridge
        said = self.shell.ask("sh", "-uc", lxc_scripts.FACTS, "sh", str(self.root), bridge, *nodes).check().text
        found = list(lxc_scripts.problems(container, str(self.root), said))
        if container.unprivileged and not found:
            done = self.shell.ask(*_IDMAP, "test", "-x", str(self.root))
            if done.status != 0:
                found.append(f"containers' root cannot enter {self.root}: run chmod o+x on it and the folders above")
        return tuple(found)

    def find_upload(self, name: str, sha256: str) -> str | None:
        path = self._upload(name, sha256)
        done = self.shell.ask("sha256sum", "--", path, timeout=None)
        return path if done.status == 0 and done.text.split()[0].lstrip("\\") == sha256 else None

    def can_link(self, template: int, storage: str | None) -> bool:
        """Whether the kernel has overlayfs and the folder's file system what it needs of an upper one.

        Tried here with systemd in unprivileged containers: ext4, kernel 6.18.
        """
        guest = self.guest(template)
        return guest is not None and guest.template and self._links()

    # what changes

    def upload(self, file: Path, sha256: str, run: str) -> str:
        """By content: deploys to this folder are all from this machine, one template at a time."""
        path = self._upload(file.name, sha256)
        _check(self._sh(lxc_scripts.UPLOAD, path, sha256, stdin=file), path)
        return path

    def forget_upload(self, name: str, sha256: str, run: str) -> bool:
        path = self._upload(name, sha256)
        done = self._sh(lxc_scripts.FORGET_UPLOAD, path)
        _check(done, path)
        return bool(done.text)

    def create(self, container: Container, volume: str, settings: Settings) -> None:
        folder = self._folder(container.ctid)
        owner = str(FIRST_ID if container.unprivileged else 0)
        rootfs = f"{folder}/rootfs"
        with self._making(container, settings.description, settings.tags):
            self._do(container.ctid, "install", "-d", "-o", owner, "-g", owner, rootfs)
            tar = (*_map(container), *_TAR, "-C", rootfs, "--skip-old-files", "--anchored", "--exclude", "./dev/*")
            self._script(container.ctid, 'file=$1; shift; exec "$@" < "$file"', volume, "flock", folder, *tar)
            self._apply(settings, lxc_config.root_lines(folder, None, unprivileged=container.unprivileged), FIRST)

    def make_template(self, ctid: int) -> None:
        guest = self._stopped(ctid)
        if guest is not None and _base(guest) is not None:
            raise BuilderError("is a linked clone itself", where=_called(guest), hint="clone it with --full first")
        key, value = ONLY_CLONED
        self._script(ctid, lxc_scripts.SET_LINE, self._folder(ctid), key, value)

    def clone(self, template: int, container: Container, *, full: bool, description: str) -> None:
        self._check_template(template, container)
        folder, source = self._folder(container.ctid), self._folder(template)
        with self._making(container, description, container.tags):
            if full:
                locks = ("flock", "--shared", source, "flock", folder)
                copy = ("cp", "-a", "--preserve=xattr", "--reflink=auto", f"{source}/rootfs", f"{folder}/rootfs")
                self._do(container.ctid, *locks, *copy)
            else:
                owner = str(FIRST_ID if container.unprivileged else 0)
                made = (f"{folder}/delta", f"{folder}/delta/upper", f"{folder}/rootfs")
                self._do(container.ctid, "install", "-d", "-o", owner, "-g", owner, *made)
            base = None if full else source
            lines = lxc_config.root_lines(folder, base, unprivileged=container.unprivileged)
            self._apply(Settings(container, container.tags, description), lines, CLONED)

    def configure(self, settings: Settings) -> None:
        guest = self._stopped(settings.container.ctid)
        if guest is not None and guest.template:
            raise BuilderError("is a template, which is only cloned", where=_called(guest))
        self._apply(settings)
        self._write_record(settings.container.ctid, _record(settings))

    def describe(self, ctid: int, description: str, tags: tuple[str, ...]) -> None:
        done = self.shell.ask("cat", f"{self._folder(ctid)}/builder.json")
        if done.status != 0 and not self.shell.dry:
            raise BuilderError("is not of the builder's making", where=f"container {ctid}")
        self._write_record(ctid, {**lxc_scripts.record(done.text), "description": description, "tags": list(tags)})

    def set_onboot(self, ctid: int, onboot: bool) -> None:
        self._script(ctid, lxc_scripts.SET_LINE, self._folder(ctid), "lxc.start.auto", str(int(onboot)))

    def start(self, ctid: int) -> None:
        guest = self.guest(ctid)
        if guest is not None and guest.template:
            raise BuilderError("is a template, which is only cloned", where=_called(guest))
        if guest is not None and guest.lock:
            raise BuilderError("was not finished", where=_called(guest), hint="run `builder rollback`")
        if guest is not None and guest.running:
            return
        log = f"{self._folder(ctid)}/start.log"
        self._do(ctid, "rm", "-f", log)
        done = self.shell.do("lxc-start", *self._which(ctid), "-o", log, "-l", "ERROR", timeout=120)
        if not self.shell.dry and (done.status != 0 or not self._runs(ctid)):
            said = self.shell.ask("cat", log).text
            self._script(ctid, lxc_scripts.LEFT_GROUPS, str(ctid))
            raise BuilderError(f"it did not start: {lxc_scripts.errors(said, done)}", where=f"container {ctid}")

    def stop(self, ctid: int, *, timeout: int = 60) -> None:
        if self._runs(ctid):
            done = self.shell.do("lxc-stop", *self._which(ctid), "--timeout", str(timeout), timeout=timeout + 60)
            if not self.shell.dry and self._runs(ctid):
                raise BuilderError(f"does not stop: {done.err.decode(errors='replace')}", where=f"container {ctid}")

    def destroy(self, ctid: int) -> None:
        guest = self._stopped(ctid)
        if guest is not None:
            if "builder.json" not in (guest.config or {}):
                raise BuilderError("is not of the builder's making", where=_called(guest), hint="look at it by hand")
            links = [each for each in self.guests() if _base(each) == f"{self._folder(ctid)}/rootfs"]
            if links:
                names = ", ".join(f"{each.ctid} ({each.name})" for each in links)
                raise BuilderError(f"has linked clones: {names}", where=_called(guest), hint="destroy them first")
        self._remove(ctid)

    def recover(self, ctid: int, template: int | None) -> None:
        self._script(ctid, lxc_scripts.AWAIT, self._folder(ctid), str(_WAIT))
        guest = self.guest(ctid)
        if self._state(ctid) in ("STARTING", "STOPPING", "ABORTING", "FREEZING", "THAWED"):
            self._do(ctid, "lxc-stop", *self._which(ctid), "--kill")
        if guest is None or guest.lock:
            self._script(ctid, lxc_scripts.UNMOUNT, self._folder(ctid))
            self._remove(ctid)

    # inside a container

    def inside(self, ctid: int, argv: Sequence[str]) -> tuple[str, ...]:
        variables = (f"--set-var=PATH={PATH}", "--set-var=HOME=/root", "--set-var=TERM=linux")
        return ("lxc-attach", *self._which(ctid), "--clear-env", *variables, "--", *argv)

    # how

    def _folder(self, ctid: int) -> str:
        return str(self.root / str(ctid))

    def _which(self, ctid: int) -> tuple[str, ...]:
        return ("-P", str(self.root), "-n", str(ctid))

    def _upload(self, name: str, sha256: str) -> str:
        """By content, so that no other file is ever in the way."""
        return str(self.root / ".builder" / "templates" / f"{sha256}-{Path(name).name}")

    def _sh(self, script: str, *arguments: str, stdin: bytes | Path | None = None, note: str = "") -> Done:
        return self.shell.do("sh", "-euc", script, "sh", *arguments, stdin=stdin, timeout=_COPY, note=note)

    def _script(self, ctid: int, script: str, *arguments: str, stdin: bytes | None = None, note: str = "") -> None:
        _check(self._sh(script, *arguments, stdin=stdin, note=note), f"container {ctid}")

    def _do(self, ctid: int, *argv: str) -> None:
        _check(self.shell.do(*argv, timeout=_COPY), f"container {ctid}")

    def _look(self, pattern: str) -> tuple[Guest, ...]:
        done = self.shell.ask("sh", "-uc", lxc_scripts.LOOK, "sh", str(self.root), pattern)
        return lxc_scripts.guests(done.check().text)

    def _links(self) -> bool:
        return self.shell.ask("sh", "-uc", lxc_scripts.CAN_LINK, "sh", str(self.root)).status == 0

    def _state(self, ctid: int) -> str:
        """As LXC calls it; empty for what LXC does not know."""
        return self.shell.ask("lxc-info", *self._which(ctid), "--state", "--no-humanize").text.strip()

    def _runs(self, ctid: int) -> bool:
        return self._state(ctid) in ("RUNNING", "FROZEN")

    def _stopped(self, ctid: int) -> Guest | None:
        """The container, which must not run; None where a dry run has not made it. Raises BuilderError."""
        guest = self.guest(ctid)
        if guest is None and not self.shell.dry:
            raise BuilderError("is not there", where=f"container {ctid}")
        if guest is not None and guest.running and not self.shell.dry:
            raise BuilderError("runs", where=_called(guest), hint="stop it first")
        return guest

    def _check_template(self, template: int, container: Container) -> None:
        guest = self.guest(template)
        if guest is None:
            if not self.shell.dry:
                raise BuilderError("is not there", where=f"template {template}")
            return
        if not guest.template:
            raise BuilderError("is no template", where=_called(guest))
        if container.unprivileged != ("lxc.idmap" in (guest.config or {})):
            kinds = ("unprivileged", "privileged")
            own, other = kinds if container.unprivileged else kinds[::-1]
            raise BuilderError(
                f"is {other}, and so are its clones", where=_called(guest), hint=f"{own} is not possible"
            )

    @contextmanager
    def _making(self, container: Container, description: str, tags: Sequence[str]) -> Iterator[None]:
        """A new folder with a record; it is gone again when what follows fails."""
        group = str(FIRST_ID if container.unprivileged else 0)
        record = _dumped({"name": container.name, "tags": list(tags), "description": description})
        arguments = (str(self.root), str(container.ctid), group)
        self._script(container.ctid, lxc_scripts.RESERVE, *arguments, stdin=record, note="builder.json")
        try:
            yield
        except LostError:
            raise
        except BuilderError:
            self._remove(container.ctid)
            raise

    def _apply(self, settings: Settings, root_lines: str = "", script: str = "") -> None:
        """A configuration, with `root_lines` where there is none yet; inside `script`, the name and the network."""
        container, host = settings.container, self._machine()
        folder = self._folder(container.ctid)
        text = lxc_config.render(container, host, self._nodes(settings.devices), settings.raw) + root_lines
        self._script(container.ctid, lxc_scripts.CONFIG, folder, stdin=text.encode(), note="config")
        files = lxc_config.identity(container, host)
        words = (word for pair in files.items() for word in pair)
        self._confined(container, script + lxc_scripts.WRITE, *words)
        self._script(container.ctid, lxc_scripts.FINISH, folder)

    def _confined(self, container: Container, script: str, *arguments: str) -> None:
        """Run a script in a stopped container's files, as its root: none of their links leads to the host's."""
        folder = self._folder(container.ctid)
        enter = ("unshare", "--mount", "sh", "-euc", lxc_scripts.ENTER, "sh", folder, script, *arguments)
        self._do(container.ctid, "flock", folder, *_map(container), *enter)

    def _write_record(self, ctid: int, record: Mapping[str, Any]) -> None:
        self._script(ctid, lxc_scripts.RECORD, self._folder(ctid), stdin=_dumped(record), note="builder.json")

    def _machine(self) -> lxc_config.Machine:
        return lxc_config.machine(self.shell.ask("sh", "-euc", lxc_config.MACHINE).check().text)

    def _nodes(self, devices: Sequence[Device]) -> tuple[Node, ...]:
        if not devices:
            return ()
        paths = [device.path for device in devices]
        return lxc_config.nodes(devices, self.shell.ask("stat", "-Lc", "%F|%t|%T|%a|%n", "--", *paths).text)

    def _remove(self, ctid: int) -> None:
        self._script(ctid, lxc_scripts.REMOVE, str(self.root), str(ctid))


def _check(done: Done, where: str) -> None:
    """Raises BuilderError with what a command said. Its own text would be a whole script."""
    if done.status != 0:
        raise BuilderError(tail(done.err) or f"exit {done.status}", where=where)


def _map(container: Container) -> tuple[str, ...]:
    return _IDMAP if container.unprivileged else ()


def _called(guest: Guest) -> str:
    return f"container {guest.ctid} ({guest.name})"


def _base(guest: Guest) -> str | None:
    return lxc_config.base_of(tuple((guest.config or {}).items()))


def _record(settings: Settings) -> dict[str, Any]:
    return {
        "name": settings.container.name,
        "tags": list(settings.tags),
        "description": settings.description,
        "settings": jsonable(settings),
    }


def _dumped(record: Mapping[str, Any]) -> bytes:
    """One line, so that it can be shown beside others."""
    return json.dumps(record, sort_keys=True).encode() + b"\n"
