"""Templates in real LXC containers, as Proxmox makes them: unpacked with its tar call, set up as its code does."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from conftest import OPEN_FOLDER

FIRST_ID, IDS = 100_000, 65_536
"""The ids that Proxmox gives to every unprivileged container."""

IDMAP = ["lxc-usernsexec", "-m", f"u:0:{FIRST_ID}:{IDS}", "-m", f"g:0:{FIRST_ID}:{IDS}", "--"]
WITH_SUBIDS = 'mount -t overlay overlay -o "lowerdir=$0:/etc" /etc && exec "$@"'
CONFIGS = Path("/usr/share/lxc/config")
PRESET = """\
# Added by PVE at create-time for first-boot configuration.
enable container-getty@.service
disable getty@.service
disable sys-kernel-config.mount
disable sys-kernel-debug.mount
disable systemd-networkd.service
"""
CREATE = """\
rm /etc/machine-id
sed -i 's/^root:[^:]*:/root:*:/' /etc/shadow
unit=/usr/lib/systemd/system/container-getty@.service
wants=/etc/systemd/system/getty.target.wants
sed -i 's@pts/%I@tty%I@g' "$unit"
mkdir -p "$wants"
for tty in 1 2; do ln -sf "$unit" "$wants/container-getty@$tty.service"; done
"""


def proxmox_tar(root: Path) -> list[str]:
    """The command that `pct create` runs (pve-container LXC/Create.pm)."""
    options = "--zstd --totals --one-file-system -p --sparse --numeric-owner --acls --xattrs"
    kept = ["--xattrs-include=user.*", "--xattrs-include=security.capability"]
    warnings = ["--warning=no-file-ignored", "--warning=no-xattr-write"]
    rest = ["-C", str(root), "--skip-old-files", "--anchored", "--exclude", "./dev/*"]
    return ["tar", "xpf", "-", *options.split(), *kept, *warnings, *rest]


def with_subids(subids: Path) -> list[str]:
    """What runs a command with the subordinate ids that every Proxmox host gives to its root, whatever it has here.

    `subids` is the folder for these tables: a bind over the real ones would be gone as soon as a user is added.
    """
    if not subids.exists():
        subids.mkdir(mode=0o755)
        for name in ("subuid", "subgid"):
            (subids / name).write_text(f"root:{FIRST_ID}:{IDS}\n")
    return ["unshare", "--mount", "sh", "-c", WITH_SUBIDS, str(subids)]


def unpack(template: Path, root: Path, *, unprivileged: bool = False) -> None:
    """Unpack `template` into the new folder `root`; tar must succeed and have nothing to say."""
    root.mkdir()
    (root / "lost+found").mkdir(mode=0o700)  # as on a fresh ext4
    prefix: list[str] = []
    if unprivileged:
        os.chown(root, FIRST_ID, FIRST_ID)
        prefix = [*with_subids(root.with_name("subids")), *IDMAP]
    with open(template, "rb") as file:
        done = subprocess.run(
            [*prefix, *proxmox_tar(root)],
            stdin=file,
            capture_output=True,
            text=True,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
        )
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if not line.startswith("Total bytes")] == []


@dataclass(frozen=True)
class Bridge:
    """A bridge of the host that leads nowhere else."""

    name: str
    network: str  # the first three numbers

    @property
    def host(self) -> str:
        return f"{self.network}.1"

    @property
    def guest(self) -> str:
        return f"{self.network}.10"


@contextmanager
def new_bridge() -> Iterator[Bridge]:
    """A bridge with an address of the range for bench marks (RFC 2544); gone at the end."""
    bridge = Bridge(f"boot{os.getpid()}e", f"198.18.{os.getpid() % 256}")
    _ip("link", "add", bridge.name, "type", "bridge")
    try:
        _ip("address", "add", f"{bridge.host}/24", "dev", bridge.name)
        _ip("link", "set", bridge.name, "up")
        yield bridge
    finally:
        _ip("link", "delete", bridge.name)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@dataclass(frozen=True)
class Container:
    """A container of LXC in a folder of its own, with root's files in `root`."""

    folder: Path
    name: str
    owner: int  # the host's id of the container's root

    @property
    def root(self) -> Path:
        return self.folder / self.name / "rootfs"

    def start(self) -> None:
        """Start it; the caller waits for what is to come up."""
        log, console = self.folder / "log", self.folder / "console"
        argv = ["lxc-start", *self._which, "-o", str(log), "-l", "INFO", "--console-log", str(console)]
        done = subprocess.run([*with_subids(self.folder / "subids"), *argv], capture_output=True, text=True)
        assert done.returncode == 0, "\n".join(line for line in log.read_text().splitlines() if " ERROR " in line)

    def stop(self, *options: str) -> None:
        """Stop it, with time to shut down unless `options` say ``-k``."""
        subprocess.run(["lxc-stop", *self._which, *options], check=True, capture_output=True)

    def try_run(self, *argv: str, keep_env: bool = False) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as `pct exec` does, and give its end."""
        env = [] if keep_env else ["--clear-env"]
        return subprocess.run(
            ["lxc-attach", *self._which, *env, "--", *argv],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def run(self, *argv: str) -> str:
        """What a command inside, which must succeed, prints."""
        done = self.try_run(*argv)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def state(self, *, patience: float = 120) -> str:
        """What systemd says when it has done with starting, or after `patience` seconds."""
        deadline = time.monotonic() + patience
        while True:
            state = self.try_run("systemctl", "is-system-running").stdout.strip()
            if state not in ("", "initializing", "starting", "offline") or time.monotonic() > deadline:
                return state
            time.sleep(0.1)

    def write(self, path: str, text: str) -> None:
        """Write a file, started or not, in place of whatever has that name."""
        self.shell('mkdir -p "$(dirname "$1")"; rm -f "$1"; cat > "$1"', path, text=text)

    def shell(self, script: str, *arguments: str, text: str = "") -> None:
        """Run a script with the container's files as root folder and the ids of its root, as Proxmox's set-up does.

        So no link of the template leads to a file of the host, and none could be written.
        """
        confined = [*with_subids(self.folder / "subids"), *IDMAP] if self.owner else []
        argv = [*confined, "chroot", str(self.root), "/bin/sh", "-euc", script, "sh", *arguments]
        path = "/usr/sbin:/usr/bin:/sbin:/bin"
        done = subprocess.run(argv, input=text, capture_output=True, text=True, env={"PATH": path, "LC_ALL": "C"})
        assert done.returncode == 0, done.stderr

    @property
    def _which(self) -> list[str]:
        return ["-P", str(self.folder), "-n", self.name]


@contextmanager
def open_folder() -> Iterator[Path]:
    """A new folder that every user may enter, a container's root too; gone at the end."""
    parent, prefix = os.path.split(OPEN_FOLDER)
    with TemporaryDirectory(prefix=prefix, dir=parent) as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@contextmanager
def booted(
    template: Path, bridge: Bridge, *, unprivileged: bool = True, nesting: bool = True, mounts: Sequence[str] = ()
) -> Iterator[Container]:
    """A started container from `template`; it and its files are gone at the end, whatever happens.

    `mounts` are further `lxc.mount.entry` values. AppArmor, which Proxmox has on its hosts, is off.
    """
    with open_folder() as folder:
        container = Container(folder, bridge.name, FIRST_ID if unprivileged else 0)
        container.root.parent.mkdir()
        unpack(template, container.root, unprivileged=unprivileged)
        set_up(container, bridge)
        config = [*_config(container, bridge, nesting), *(f"lxc.mount.entry = {entry}" for entry in mounts)]
        (container.root.parent / "config").write_text("\n".join(config) + "\n")
        try:
            container.start()
            yield container
        finally:
            subprocess.run(["lxc-stop", "-P", str(folder), "-n", container.name, "-k"], capture_output=True)
            traces(str(folder))
            for group in Path("/sys/fs/cgroup").glob(f"*/lxc.monitor.{container.name}*"):
                group.rmdir()  # LXC leaves it when a start fails


def _config(container: Container, bridge: Bridge, nesting: bool) -> Iterator[str]:
    """As PVE::LXC::update_lxc_config writes it, as far as Debian's LXC knows it."""
    yield f"lxc.include = {CONFIGS}/debian.common.conf"
    if container.owner:
        yield f"lxc.include = {CONFIGS}/debian.userns.conf"
        yield "lxc.mount.auto = sys:mixed"
        yield f"lxc.idmap = u 0 {FIRST_ID} {IDS}"
        yield f"lxc.idmap = g 0 {FIRST_ID} {IDS}"
    if nesting:
        yield f"lxc.include = {CONFIGS}/nesting.conf"
    yield "lxc.apparmor.profile = unconfined"
    yield "lxc.arch = amd64"
    yield "lxc.monitor.unshare = 1"
    yield "lxc.tty.max = 2"
    yield "lxc.environment = TERM=linux"
    if not Path("/sys/fs/cgroup/cgroup.controllers").exists():  # this host's cgroup v1, which no Proxmox 9 has
        yield "lxc.environment = SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1"
    yield f"lxc.uts.name = {container.name}"
    yield f"lxc.rootfs.path = dir:{container.root}"
    yield "lxc.net.0.type = veth"
    yield f"lxc.net.0.link = {bridge.name}"
    yield "lxc.net.0.name = eth0"
    yield "lxc.net.0.flags = up"


def set_up(container: Container, bridge: Bridge) -> None:
    """Write what Proxmox writes at create and at start (PVE::LXC::Setup::Base and ::Debian), ssh host keys apart."""
    container.write("/fastboot", "")
    container.write("/etc/hostname", f"{container.name}\n")
    container.write("/etc/hosts", f"127.0.0.1 localhost\n::1 localhost\n{bridge.guest} {container.name}\n")
    container.write("/etc/resolv.conf", f"nameserver {bridge.host}\n")
    lo = "auto lo\niface lo inet loopback\niface lo inet6 loopback\n"
    eth0 = f"auto eth0\niface eth0 inet static\n\taddress {bridge.guest}/24\n\tgateway {bridge.host}\n"
    container.write("/etc/network/interfaces", f"{lo}\n{eth0}")
    container.write("/etc/systemd/system-preset/00-pve.preset", PRESET)
    container.shell(CREATE)


def traces(mark: str, *, patience: float = 60) -> list[str]:
    """What on this machine still carries `mark` after `patience` seconds: mounts, links, control groups, processes.

    LXC's monitor outlives its container by a moment, and so do a killed program's children.
    """
    deadline = time.monotonic() + patience
    while (found := _traces(mark)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def _traces(mark: str) -> list[str]:
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if mark in line]
    folders = [Path("/sys/class/net"), *Path("/sys/fs/cgroup").iterdir()]
    found = [str(path) for folder in folders if folder.is_dir() for path in folder.glob(f"*{mark}*")]
    processes = subprocess.run(["pgrep", "--full", "--list-full", mark], capture_output=True, text=True).stdout
    return mounts + found + processes.splitlines()
