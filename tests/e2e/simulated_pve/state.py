"""What a simulated node keeps: configurations of containers as Proxmox writes them, and locks."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(os.environ.get("SIMULATED_PVE", "/nonexistent"))
"""The node's folder. LXC's containers lie in its folder `lxc`, which is /var/lib/lxc in the namespace."""
CONFIGS = Path("/etc/pve/lxc")
LOCKS = Path("/run/lock/lxc")
VERSION = "5.3.5"
_KNOWN = re.compile(
    r"lxc\.(?:mount\.(?:entry|auto)|cgroup2?\.\S+|idmap|environment|prlimit\.\S+|hook\.\S+|apparmor\.\S+)$"
)
"""Raw keys that Proxmox takes; a part of its list."""


class RefusedError(Exception):
    """What a command says and its status when it does not do what it was asked to."""

    def __init__(self, said: str, status: int = 255) -> None:
        super().__init__(said)
        self.status = status


def not_simulated(what: str) -> RefusedError:
    return RefusedError(f"simulated_pve: {what} is not simulated", 99)


@dataclass
class Config:
    """A container's configuration."""

    keys: dict[str, str] = field(default_factory=dict)
    description: str = ""
    raw: list[str] = field(default_factory=list)
    pending: dict[str, str] = field(default_factory=dict)
    strange: list[str] = field(default_factory=list)  # lost at the next write

    def text(self) -> str:
        """As it lies in /etc/pve/lxc."""
        lines = [f"#{_encoded(line)}" for line in self.description.splitlines()]
        lines += [f"{key}: {value}" for key, value in sorted(self.keys.items())] + self.raw
        if self.pending:
            lines += ["", "[pve:pending]", *(f"{key}: {value}" for key, value in sorted(self.pending.items()))]
        return "".join(f"{line}\n" for line in lines)

    def devices(self) -> Iterator[dict[str, str]]:
        """Its `dev[n]`, each with a `path`."""
        for key, value in sorted(self.keys.items()):
            if re.fullmatch(r"dev\d+", key):
                yield pairs(value, "path")

    @property
    def template(self) -> bool:
        return self.keys.get("template") == "1"


def pairs(text: str, first: str = "") -> dict[str, str]:
    """``KEY=VALUE,...``; a value without a key is that of `first`."""
    parts = (part.partition("=") for part in text.split(","))
    return {key if equals else first: value if equals else key for key, equals, value in parts}


def _encoded(line: str) -> str:
    unsafe = (byte < 0x20 or byte > 0x7E or byte in b":%" for byte in line.encode())
    return "".join(f"%{byte:02X}" if odd else chr(byte) for byte, odd in zip(line.encode(), unsafe, strict=True))


def path_of(ctid: int) -> Path:
    return CONFIGS / f"{ctid}.conf"


def load(ctid: int, missing: int = 2) -> Config:
    """The configuration. Raises RefusedError with status `missing` when there is none."""
    try:
        text = path_of(ctid).read_text()
    except FileNotFoundError:
        raise RefusedError(f"Configuration file 'nodes/vm/lxc/{ctid}.conf' does not exist", missing) from None
    found, keys = Config(), None
    description = []
    for line in text.splitlines():
        if line.startswith("["):
            keys = found.pending if line == "[pve:pending]" else {}
        elif line.startswith("#"):
            description.append(unquote(line[1:]))
        elif line.startswith("lxc."):
            (found.raw if _KNOWN.match(line.partition(":")[0]) else found.strange).append(line)
        elif line:
            key, _, value = line.partition(": ")
            (found.keys if keys is None else keys)[key] = value
    found.description = "\n".join(description)
    for line in found.strange:
        print(f"vm {ctid} - unable to parse config: {line}", flush=True)
    return found


def save(ctid: int, config: Config) -> None:
    new = path_of(ctid).with_name(f"{ctid}.conf.tmp.{os.getpid()}")
    new.write_text(config.text())
    new.replace(path_of(ctid))


def digest(ctid: int) -> str:
    return sha1(path_of(ctid).read_bytes()).hexdigest()


def create(ctid: int) -> None:
    """Take the id, with an empty locked configuration. Raises RefusedError when it is taken."""
    try:
        with path_of(ctid).open("x") as file:
            file.write("lock: create\n")
    except FileExistsError:
        raise RefusedError(f"CT {ctid} already exists on node 'vm'") from None


def ids() -> list[int]:
    return sorted(int(path.stem) for path in CONFIGS.glob("*.conf"))


@contextmanager
def changing(ctid: int, missing: int = 2, *, lock: bool = True) -> Iterator[Config]:
    """The configuration to change, written at the end under Proxmox's own lock of its file.

    Raises RefusedError when it is not there or, with `lock`, has a lock.
    """
    with (LOCKS / f"pve-config-{ctid}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        config = load(ctid, missing)
        if lock:
            check_lock(config)
        yield config
        save(ctid, config)


def check_lock(config: Config) -> None:
    if "lock" in config.keys:
        raise RefusedError(f"CT is locked ({config.keys['lock']})")


def unlock(ctid: int) -> None:
    with changing(ctid, lock=False) as config:
        config.keys.pop("lock", None)


def dpkg_query(argv: Sequence[str]) -> int:
    """Debian's own, but for the one package that makes a machine a node."""
    if "pve-container" not in argv:
        os.execv("/usr/bin/dpkg-query", ["dpkg-query", *argv])
    print(VERSION)
    return 0
