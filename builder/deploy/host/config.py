"""Configurations of Proxmox containers: the file as PVE::LXC::Config parses it, and the options that make one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import unquote

from builder.deploy.model import Container, Device, Guest, Network, Settings
from builder.errors import UsageError

_SECTION = re.compile(r"\[(?:pve:pending|[a-z][a-z0-9_-]+)\]\s*", re.IGNORECASE)
_RAW = re.compile(r"(lxc\.[a-z0-9_.-]+)(?::|\s*=)\s*(.*?)\s*")
_KEY = re.compile(r"([a-z][a-z_]*\d*):\s*(.+?)\s*")
_SIZE = re.compile(r"(?:^|,)size=(\d+(?:\.\d+)?)([KMGT]?)(?:,|$)")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True)
class Config:
    """What a container's file says now: no snapshots, nothing pending."""

    keys: Mapping[str, str]
    description: str
    raw: tuple[str, ...]  # ``lxc.KEY: VALUE``

    @property
    def root_size(self) -> int:
        """Bytes of the root disk; 0 where it has no size of its own."""
        size = _SIZE.search(self.keys.get("rootfs", ""))
        return int(float(size[1]) * _UNITS[size[2]]) if size else 0

    @property
    def mac(self) -> str | None:
        """Of its first network card."""
        return dict(_pairs(self.keys.get("net0", ""))).get("hwaddr")

    def guest(self, ctid: int, *, running: bool) -> Guest:
        """As the rest of a deploy sees it."""
        keys = self.keys
        return Guest(
            ctid=ctid,
            name=keys.get("hostname", f"CT{ctid}"),
            running=running,
            template=keys.get("template") == "1",
            lock=keys.get("lock", ""),
            tags=split_tags(keys.get("tags", "")),
            description=self.description,
            config=keys,
            raw=self.raw,
        )


def parse(text: str) -> Config:
    """The contents of ``/etc/pve/lxc/ID.conf``. What Proxmox would not understand is left out, as it does."""
    keys: dict[str, str] = {}
    raw: list[str] = []
    description: list[str] = []
    for line in text.splitlines():
        if _SECTION.fullmatch(line):
            break
        if line.startswith("#"):
            description.append(unquote(line[1:]))
        elif found := _RAW.fullmatch(line):
            raw.append(f"{found[1]}: {found[2]}")
        elif found := _KEY.fullmatch(line):
            keys[found[1]] = found[2]
    return Config(keys, "\n".join(description), tuple(raw))


def split_tags(text: str) -> tuple[str, ...]:
    """Tags as Proxmox stores them, separated by semicolons."""
    return tuple(tag for tag in re.split(r"[;,\s]+", text) if tag)


def with_mac(settings: Settings, mac: str | None) -> Settings:
    """The settings with this MAC where they have none: `pct set --net0` without one draws a new one."""
    network = settings.container.network
    if network.mac is not None or mac is None:
        return settings
    return replace(settings, container=replace(settings.container, network=replace(network, mac=mac)))


def options(settings: Settings, *, device_entries: bool = True) -> list[str]:
    """The options of `pct create` and `pct set` for `settings`; raw lines and the root disk have none."""
    made = list(_options(settings.container))
    made += [("tags", ";".join(settings.tags)), ("description", settings.description)]
    if device_entries:
        made += [(f"dev{i}", f"{device.path},mode={device.mode}") for i, device in enumerate(settings.devices)]
    return [word for name, value in made for word in (f"--{name}", value)]


def _options(container: Container) -> Iterator[tuple[str, str]]:
    network = container.network
    yield "hostname", container.name
    yield "memory", str(container.memory_mib)
    yield "swap", str(container.swap_mib)
    yield "cores", str(container.cores)
    yield "features", f"nesting={container.nesting:d}"
    yield "net0", _net(network)
    if network.nameservers:
        yield "nameserver", " ".join(network.nameservers)
    if network.searchdomain:
        yield "searchdomain", network.searchdomain
    yield "onboot", f"{container.onboot:d}"
    startup = [("order", container.order), ("up", container.delay)]
    if any(value is not None for _, value in startup):
        yield "startup", ",".join(f"{key}={value}" for key, value in startup if value is not None)


def _net(network: Network) -> str:
    pairs = (
        ("name", network.name),
        ("bridge", network.bridge),
        ("hwaddr", network.mac.upper() if network.mac else None),
        ("ip", network.ip),
        ("gw", network.gateway),
        ("tag", network.vlan),
        ("mtu", network.mtu),
        ("firewall", 1 if network.firewall else None),
        ("type", "veth"),
    )
    return ",".join(f"{key}={value}" for key, value in pairs if value is not None)


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    for part in text.split(","):
        key, _, value = part.partition("=")
        yield key, value


_ADD_RAW = """\
conf=$1 head=$(sed '/^\\[/,$d' "$1") rest=$(sed -n '/^\\[/,$p' "$1"); shift
for line; do printf '%s\\n' "$head" | grep -qxF -- "$line" || head="$head
$line"; done
printf '%s\\n' "$head" ${rest:+"" "$rest"} > "$conf.tmp.$$"; mv -f "$conf.tmp.$$" "$conf\""""


def add_raw(ctid: int, lines: Sequence[str]) -> tuple[str, ...]:
    """The command that adds raw lines to a configuration, before its sections; those there are not doubled.

    Under Proxmox's own lock of this configuration, and replacing the file as Proxmox does: /etc/pve cannot append.
    """
    lock = f"/run/lock/lxc/pve-config-{ctid}.lock"
    return ("flock", "-w", "10", lock, "sh", "-euc", _ADD_RAW, "sh", f"/etc/pve/lxc/{ctid}.conf", *lines)


_SET = """\
conf=$1 new=$1.tmp.$$
{ sed -e '/^\\[/,$d' -e "/^$2:/d" "$conf"; printf '%s: %s\\n' "$2" "$3"; sed -n '/^\\[/,$p' "$conf"; } > "$new"
mv -f "$new" "$conf\""""


def set_key(ctid: int, key: str, value: str) -> tuple[str, ...]:
    """The command that sets a key as `add_raw` adds lines, for what `pct set` refuses for another key's sake."""
    lock = f"/run/lock/lxc/pve-config-{ctid}.lock"
    return ("flock", "-w", "10", lock, "sh", "-euc", _SET, "sh", f"/etc/pve/lxc/{ctid}.conf", key, value)


def raw_line(text: str) -> str:
    """A raw line as Proxmox writes it. Raises UsageError when it is none."""
    found = _RAW.fullmatch(text)
    if found is None or not found[2] or not text.isprintable():
        raise UsageError(f"{text!a} is no raw line of LXC", hint="write lxc.KEY: VALUE")
    return f"{found[1]}: {found[2]}"


def device_lines(device: Device, major: int) -> tuple[str, str]:
    """Raw lines that pass a node, for hosts without `dev[n]`; they hold only while the node keeps its `major`."""
    entry = f"{device.path} {device.path.lstrip('/')} none bind,optional,create=file"
    return f"lxc.cgroup2.devices.allow: c {major}:* rwm", f"lxc.mount.entry: {entry}"
