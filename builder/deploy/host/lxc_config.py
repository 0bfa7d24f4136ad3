"""A container's configuration for LXC, written and read, and the files that give it its name and network.

Keys are those of lxc.container.conf(5). What Proxmox makes of the same settings (PVE::LXC::update_lxc_config and
PVE::LXC::Setup) is the model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from builder.deploy.model import Container, Device, Network
from builder.errors import BuilderError

FIRST_ID, IDS = 100_000, 65_536
"""The host's ids for an unprivileged container's 0 to 65535, the same as Proxmox takes."""
ONLY_CLONED = ("lxc.hook.pre-start", "/bin/false")
"""Makes a container a template: LXC itself does not start it."""
_INCLUDES = PurePosixPath("/usr/share/lxc/config")
_RAW = re.compile(r"(lxc(?:\.[A-Za-z0-9_-]+)+)\s*[:=]\s*(\S.*)")
_NODE = re.compile(r"/dev(?:/[A-Za-z0-9_.+:@-]+)+")


@dataclass(frozen=True)
class Machine:
    """What of a host its containers' configuration depends on."""

    unified: bool  # cgroup v2 alone; else v1
    swap: bool  # whether it can limit swap
    cpus: tuple[int, ...]  # online
    apparmor: bool
    resolv: tuple[str, ...]  # lines of its resolv.conf


MACHINE = """\
cgroup=$(stat -f -c %T /sys/fs/cgroup)
echo "cgroup=$cgroup"
for file in /sys/fs/cgroup/*/memory.swap.max /sys/fs/cgroup/memory/memory.memsw.limit_in_bytes; do
    [ ! -e "$file" ] || echo "swap=$file"
done
echo "cpus=$(cat /sys/devices/system/cpu/online)"
echo "apparmor=$(cat /sys/module/apparmor/parameters/enabled 2>/dev/null || echo N)"
for file in /run/systemd/resolve/resolv.conf /etc/resolv.conf; do
    [ -f "$file" ] || continue
    sed 's/^/resolv=/' "$file"
    break
done
"""
"""A script for sh that prints what `machine` reads."""


def machine(text: str) -> Machine:
    """The host of which `MACHINE` printed `text`."""
    said: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, _, value = line.partition("=")
        said.setdefault(key, []).append(value.strip())
    return Machine(
        unified=said["cgroup"] == ["cgroup2fs"],
        swap="swap" in said,
        cpus=_numbers(said["cpus"][0]),
        apparmor=said["apparmor"] == ["Y"],
        resolv=tuple(said.get("resolv", ())),
    )


@dataclass(frozen=True)
class Node:
    """A device node as the host has it."""

    device: Device
    kind: str  # "c" or "b"
    number: str  # MAJOR:MINOR


def nodes(devices: Sequence[Device], said: str) -> tuple[Node, ...]:
    """`devices` with their numbers, from what ``stat -Lc '%F|%t|%T|%a|%n'`` said of their paths.

    Raises BuilderError for one that does not exist, is no node, or is closed to services that are not root: it is bound
    into the container and keeps the host's mode.
    """
    rows = (line.split("|", 4) for line in said.splitlines())
    found = {row[4]: row for row in rows if len(row) == 5}
    return tuple(_node(device, found.get(device.path)) for device in devices)


def _node(device: Device, row: Sequence[str] | None) -> Node:
    if not _NODE.fullmatch(device.path):
        raise BuilderError("is no path of a device node", where=device.path)
    if row is None:
        raise BuilderError("does not exist", where=device.path, hint="load its driver on the host")
    kinds = {"character special file": "c", "block special file": "b"}
    if row[0] not in kinds:
        raise BuilderError(f"is no device node but a {row[0]}", where=device.path)
    mode = int(row[3], 8)
    if int(device.mode, 8) & ~mode & 0o006:
        what = f"has mode {mode:04o} on the host, which a container keeps, and needs {device.mode}"
        raise BuilderError(what, where=device.path, hint=f"run: chmod {device.mode} {device.path}")
    return Node(device, kinds[row[0]], f"{int(row[1], 16)}:{int(row[2], 16)}")


def render(container: Container, host: Machine, nodes: Sequence[Node] = (), raw: Sequence[str] = ()) -> str:
    """The configuration but for the root folder. Raises BuilderError for a raw line that is none."""
    pairs = [
        *_kind(container, host),
        *_network(container.network),
        *_limits(container, host),
        *_boot(container),
        *_devices(container, host, nodes),
        *(_raw(line) for line in (*container.raw, *raw)),
    ]
    return "".join(f"{key} = {value}\n" for key, value in dict.fromkeys(pairs))


def _kind(container: Container, host: Machine) -> Iterator[tuple[str, str]]:
    yield "lxc.include", f"{_INCLUDES}/common.conf"
    yield "lxc.tty.dir", ""
    if container.unprivileged:
        yield "lxc.include", f"{_INCLUDES}/userns.conf"
        yield "lxc.mount.auto", "sys:mixed"
        yield "lxc.idmap", f"u 0 {FIRST_ID} {IDS}"
        yield "lxc.idmap", f"g 0 {FIRST_ID} {IDS}"
    if container.nesting:
        yield "lxc.include", f"{_INCLUDES}/nesting.conf"
    yield "lxc.apparmor.profile", "generated" if host.apparmor else "unconfined"
    if host.apparmor and container.nesting:
        yield "lxc.apparmor.allow_nesting", "1"
    yield "lxc.arch", "amd64"
    yield "lxc.monitor.unshare", "1"
    yield "lxc.tty.max", "2"
    yield "lxc.environment", "TERM=linux"
    if not host.unified:  # systemd 256 and later refuse cgroup v1 without
        yield "lxc.environment", "SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1"
    yield "lxc.uts.name", container.name.partition(".")[0]


def _network(network: Network) -> Iterator[tuple[str, str]]:
    yield "lxc.net.0.type", "veth"
    yield "lxc.net.0.link", network.bridge
    yield "lxc.net.0.name", network.name
    yield "lxc.net.0.flags", "up"
    for key, value in ("hwaddr", network.mac), ("mtu", network.mtu), ("veth.vlan.id", network.vlan):
        if value is not None:
            yield f"lxc.net.0.{key}", str(value)


def _limits(container: Container, host: Machine) -> Iterator[tuple[str, str]]:
    """Memory, swap and a set of CPUs that differs from container to container.

    A set, and not a share of the time of all, so that programs that count CPUs start as many threads as they may use.
    """
    memory, swap = container.memory_mib << 20, container.swap_mib << 20
    prefix = "lxc.cgroup2" if host.unified else "lxc.cgroup"
    yield f"{prefix}.memory.{'max' if host.unified else 'limit_in_bytes'}", str(memory)
    if host.swap and host.unified:
        yield f"{prefix}.memory.swap.max", str(swap)
    elif host.swap:
        yield f"{prefix}.memory.memsw.limit_in_bytes", str(memory + swap)
    if container.cores < len(host.cpus):
        first = container.ctid * container.cores
        chosen = sorted(host.cpus[(first + index) % len(host.cpus)] for index in range(container.cores))
        yield f"{prefix}.cpuset.cpus", ",".join(map(str, chosen))


def _boot(container: Container) -> Iterator[tuple[str, str]]:
    yield "lxc.start.auto", str(int(container.onboot))
    for key, value in ("order", container.order), ("delay", container.delay):
        if value is not None:
            yield f"lxc.start.{key}", str(value)


def _devices(container: Container, host: Machine, nodes: Sequence[Node]) -> Iterator[tuple[str, str]]:
    """Nodes bound in. The device control group holds only a privileged container back: LXC clears its rules for the
    others (userns.conf). Since with cgroup v2 one rule alone would close every other device (LXC's cgroup2_devices.c),
    theirs begin with the rule that opens all, so that a further line can do no harm."""
    if container.unprivileged:
        yield "lxc.cgroup2.devices.allow", "a"
    for node in nodes:
        if not container.unprivileged:
            key = "lxc.cgroup2.devices.allow" if host.unified else "lxc.cgroup.devices.allow"
            yield key, f"{node.kind} {node.number} rwm"
        path = node.device.path
        yield "lxc.mount.entry", f"{path} {path[1:]} none bind,optional,create=file"


def _raw(line: str) -> tuple[str, str]:
    found = _RAW.fullmatch(line.strip())
    if found is None:
        raise BuilderError(f"{line!a} is no line of the form lxc.KEY: VALUE", where="raw")
    return found[1], found[2]


def root_lines(folder: str, template: str | None, *, unprivileged: bool) -> str:
    """The lines for the root folder of the container in `folder`: of its own, or over that of `template`.

    Without `userxattr` the kernel cannot mark what a user namespace's overlay hides: folders of the template could not
    be removed (I/O error).
    """
    if template is None:
        return f"lxc.rootfs.path = dir:{folder}/rootfs\n"
    options = "lxc.rootfs.options = userxattr\n" if unprivileged else ""
    return f"lxc.rootfs.path = overlay:{template}/rootfs:{folder}/delta/upper\n{options}"


def parse(text: str) -> tuple[tuple[str, str], ...]:
    """The keys and values of a configuration in order; a key may come several times."""
    pairs = (line.partition("=") for line in map(str.strip, text.splitlines()) if line and not line.startswith("#"))
    return tuple((key.strip(), value.strip()) for key, equals, value in pairs if equals)


def base_of(pairs: Sequence[tuple[str, str]]) -> str | None:
    """The root folder of which this configuration's container is a linked clone; None when it has its own."""
    path = dict(pairs).get("lxc.rootfs.path", "")
    return path.split(":")[1] if path.startswith("overlay:") else None


def allowed(table: str, owner: str = "root") -> bool:
    """Whether subuid(5) `table` gives `owner` the ids of unprivileged containers."""
    for line in table.splitlines():
        fields = line.strip().split(":")
        if len(fields) == 3 and fields[0] in (owner, "0") and fields[1].isdecimal() and fields[2].isdecimal():
            first = int(fields[1])
            if first <= FIRST_ID and first + int(fields[2]) >= FIRST_ID + IDS:
                return True
    return False


def identity(container: Container, host: Machine) -> Mapping[str, str]:
    """Files that give a container its name and network, by path. The network is for ifupdown (interfaces(5))."""
    network = container.network
    short = container.name.partition(".")[0]
    names = container.name if container.name == short else f"{container.name} {short}"
    address = network.ip.partition("/")[0] if "/" in network.ip else "127.0.1.1"
    files = {
        "/etc/hostname": f"{short}\n",
        "/etc/hosts": f"127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n{address} {names}\n",
        "/etc/network/interfaces": _interfaces(network),
    }
    resolv = _resolv(network, host)
    return {**files, "/etc/resolv.conf": resolv} if resolv else files


def _interfaces(network: Network) -> str:
    lines = ["auto lo", "iface lo inet loopback", "", f"auto {network.name}"]
    if "/" in network.ip:
        lines += [f"iface {network.name} inet static", f"\taddress {network.ip}"]
        lines += [f"\tgateway {network.gateway}"] if network.gateway else []
    else:
        lines += [f"iface {network.name} inet {network.ip}"]
    return "\n".join(lines) + "\n"


def _resolv(network: Network, host: Machine) -> str:
    """The container's own nameservers, else the host's that a container can reach."""
    if network.nameservers:
        lines = [f"nameserver {server}" for server in network.nameservers]
    else:
        near = re.compile(r"nameserver\s+(127\.|::1)")
        lines = [line for line in host.resolv if line.startswith("nameserver") and not near.match(line)]
    search = [line for line in host.resolv if line.startswith("search")] if lines else []
    if network.searchdomain:
        search = [f"search {network.searchdomain}"]
    return "".join(f"{line}\n" for line in (*search, *lines))


def _numbers(text: str) -> tuple[int, ...]:
    """The numbers of a list such as ``0-3,8``."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return tuple(found)
