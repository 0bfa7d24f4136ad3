"""Makes a simulated node for tests: a mount namespace in which this machine looks like a Proxmox node, with an sshd.

Nothing of it is seen outside: /etc, /usr/local, /var/lib, /run/lock and /dev are overlays there, and what the node
keeps lies in its folder. The network is this machine's.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from container import FIRST_ID, IDS
from sshd import Sshd, private_sshd

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PROGRAMS = ("pct", "pvesh", "pvesm", "dpkg-query")
_PROGRAM = """\
#!/bin/sh
export SIMULATED_PVE='{root}' PYTHONPATH='{modules}'
exec '{python}' -m simulated_pve {name} "$@"
"""
_ENTER = """\
root=$1; shift
for name in etc usr/local var/lib run/lock dev; do
    mkdir -p "$root/over/$name" "$root/work/$name"
    mount -t overlay overlay -o "lowerdir=/$name,upperdir=$root/over/$name,workdir=$root/work/$name" "$root/merged"
    for inner in pts shm; do
        [ "$name" != dev ] || mount --rbind "/dev/$inner" "$root/merged/$inner"
    done
    mount --move "$root/merged" "/$name"
done
for pair in pve:/etc/pve vz:/var/lib/vz lxc:/var/lib/lxc; do
    mkdir -p "${pair#*:}"
    mount --bind "$root/${pair%%:*}" "${pair#*:}"
done
mkdir -p /run/lock/lxc
exec "$@"
"""


@dataclass(frozen=True)
class Node:
    """A simulated node that runs."""

    root: Path
    sshd: Sshd

    @property
    def lxc(self) -> Path:
        """Where LXC has its containers, for looking at them past the simulation."""
        return self.root / "lxc"

    def argv(self, *argv: str) -> list[str]:
        """What runs a command on the node, without ssh."""
        return ["nsenter", f"--mount=/proc/{self.sshd.pid}/ns/mnt", "--", *argv]

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """A command on the node to its end, with both outputs in one."""
        env, pipe = {"PATH": PATH, "LC_ALL": "C"}, subprocess.PIPE
        return subprocess.run(
            self.argv(*argv), stdin=subprocess.DEVNULL, stdout=pipe, stderr=subprocess.STDOUT, text=True, env=env
        )

    def does(self, *argv: str) -> str:
        """What a command that must pass says."""
        done = self.run(*argv)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def config(self, ctid: int) -> str:
        return (self.root / "pve/lxc" / f"{ctid}.conf").read_text()

    def containers(self) -> list[str]:
        return sorted(path.stem for path in (self.root / "pve/lxc").glob("*.conf"))

    def running(self) -> list[str]:
        argv = ["lxc-ls", "-P", str(self.lxc), "--running", "-1"]
        return sorted(subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split())

    def volumes(self) -> list[str]:
        return sorted(path.name for path in (self.root / "vz/images").glob("*/*"))

    def templates(self) -> list[str]:
        return sorted(path.name for path in (self.root / "vz/template/cache").iterdir())

    def tasks(self) -> Iterator[Path]:
        """The logs of all tasks."""
        yield from sorted((self.root / "tasks").iterdir())

    def processes(self, *words: str) -> list[int]:
        """The node's processes with these words in their command lines, one after the other."""
        wanted = b"\0" + b"\0".join(word.encode() for word in words) + b"\0"
        own = os.stat(f"/proc/{self.sshd.pid}/ns/mnt").st_ino
        found = []
        for pid, line in command_lines():
            with suppress(FileNotFoundError):
                if wanted in b"\0" + line and os.stat(f"/proc/{pid}/ns/mnt").st_ino == own:
                    found.append(pid)
        return found

    def clear(self) -> None:
        """Take everything away, whatever state it is in."""
        for pid in self.processes("simulated_pve"):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for path in self.lxc.iterdir():
            subprocess.run(["lxc-stop", "-P", str(self.lxc), "-n", path.name, "-k"], capture_output=True)
        for path in self.lxc.glob("*/rootfs"):
            while self.run("umount", f"/var/lib/lxc/{path.parent.name}/rootfs").returncode == 0:
                pass
        for folder in ("pve/lxc", "vz/images", "vz/template/cache", "lxc", "tasks"):
            for path in (self.root / folder).iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def command_lines() -> Iterator[tuple[int, bytes]]:
    """Every process of the machine with its command line as the kernel has it."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            yield int(folder.name), (folder / "cmdline").read_bytes()


@contextmanager
def simulated_node(root: Path) -> Iterator[Node]:
    """A node with nothing on it, in the new folder `root`, which every user can enter."""
    for name in ("pve/lxc", "vz/template/cache", "vz/images", "lxc", "tasks", "merged", "ssh"):
        (root / name).mkdir(parents=True)
    root.chmod(0o755)
    (root / "pve/.members").write_text('{\n"nodename": "vm",\n"version": 0\n}\n')
    for name in ("subuid", "subgid"):
        _write(root / "over/etc" / name, f"root:{FIRST_ID}:{IDS}\n")
    modules = Path(__file__).parents[1]
    for name in _PROGRAMS:
        text = _PROGRAM.format(root=root, modules=f"{modules}:{modules.parents[1]}", python=sys.executable, name=name)
        _write(root / "over/usr/local/sbin" / name, text).chmod(0o755)
    enter: Sequence[str] = ("unshare", "--mount", "sh", "-euc", _ENTER, "sh", str(root))
    with private_sshd(root / "ssh", within=enter) as sshd:
        node = Node(root, sshd)
        try:
            yield node
        finally:
            node.clear()


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path
