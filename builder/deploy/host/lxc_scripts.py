"""The scripts for sh that the `lxc` host runs, and what it reads of their output. Arguments are `$1` and on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from builder.command import tail
from builder.deploy.host import lxc_config
from builder.deploy.host.lxc_config import FIRST_ID, IDS, ONLY_CLONED
from builder.deploy.model import Container, Guest
from builder.deploy.shell import Done

LOOK = """\
root=$1 which=$2
cd "$root" 2>/dev/null || exit 0
for name in $which; do
    case $name in *[!0-9]*) continue ;; esac
    [ -d "$name" ] || continue
    echo "$name/"
    for file in builder.json config; do
        [ ! -f "$name/$file" ] || awk -v at="$name/$file:" '{ print at $0 }' "$name/$file"
    done
done
lxc-ls -P "$root" --active -1 | sed 's/^/active:/'
"""
"""ROOT PATTERN: every line of the two files of each container, behind its name; then those that run."""

FACTS = """\
root=$1 bridge=$2
shift 2
echo "uid=$(id -u)"
for tool in lxc-start lxc-usernsexec newuidmap tar zstd; do
    command -v "$tool" > /dev/null || echo "missing=$tool"
done
echo "version=$(lxc-start --version)"
[ -d "$root" ] && echo "root=yes"
link=/sys/class/net/$bridge
[ -d "$link/bridge" ] && echo "bridge=$(cat "$link/bridge/vlan_filtering" || echo 0) $(cat "$link/mtu")"
sed 's/^/subuid=/' /etc/subuid
sed 's/^/subgid=/' /etc/subgid
for node; do [ -e "$node" ] && echo "node=$(stat -Lc '%a %n' "$node")"; done
:
"""
"""ROOT BRIDGE NODE...: what `problems` reads."""

CAN_LINK = """\
case $(stat -f -c %T "$1") in ext2/ext3|xfs|btrfs) ;; *) exit 1 ;; esac
printf '5.11\n%s\n' "$(uname -r)" | sort -VC || exit 1
grep -qw overlay /proc/filesystems || modprobe --dry-run overlay
"""

UPLOAD = """\
file=$1 sha256=$2 folder=${1%/*}
mkdir -p "$folder"
exec 9< "$folder"
flock 9
rm -f "$folder"/*.part
trap 'rm -f "$file.part"' EXIT
cat > "$file.part"
echo "$sha256  $file.part" | sha256sum --check --quiet --strict -
mv -T "$file.part" "$file"
"""

FORGET_UPLOAD = """\
file=$1 folder=${1%/*}
[ -d "$folder" ] || exit 0
exec 9< "$folder"
flock 9
for each in "$file" "$file.part"; do
    if [ -e "$each" ]; then rm -f "$each"; echo "$each"; fi
done
"""

RESERVE = """\
root=$1 ctid=$2 group=$3 new=$1/.builder/new-$2
mkdir -p "$root/.builder"
rm -rf "$new"
if [ -e "$root/$ctid" ]; then echo "$root/$ctid is there already" >&2; exit 1; fi
mkdir -m 750 "$new"
chgrp "$group" "$new"
cat > "$new/builder.json"
mv -T "$new" "$root/$ctid"
"""
"""ROOT CTID GROUP: the folder with the record on standard input, all at once; only root and `group` may enter."""

RECORD = """\
cat > "$1/builder.json.new"
mv -T "$1/builder.json.new" "$1/builder.json"
"""

CONFIG = """\
cat > "$1/config.new"
[ ! -e "$1/config" ] || grep '^lxc\\.rootfs\\.' "$1/config" >> "$1/config.new"
"""
"""FOLDER: the next configuration from standard input, with the root folder that there is."""

FINISH = 'mv -T "$1/config.new" "$1/config"'

SET_LINE = """\
folder=$1 key=$2 value=$3
grep -v "^$key *=" "$folder/config" > "$folder/config.new"
echo "$key = $value" >> "$folder/config.new"
mv -T "$folder/config.new" "$folder/config"
"""

ENTER = """\
folder=$1 script=$2
shift 2
where=$(sed -n 's/^lxc\\.rootfs\\.path = //p' "$folder/config.new")
options=$(sed -n 's/^lxc\\.rootfs\\.options = /,/p' "$folder/config.new")
case $where in overlay:*)
    both=${where#overlay:}
    lower=${both%%:*} upper=${both#*:} work=${both#*:}
    work=${work%/*}/work
    mkdir -p "$work"
    mount -t overlay overlay -o "lowerdir=$lower,upperdir=$upper,workdir=$work$options" "$folder/rootfs"
esac
exec chroot "$folder/rootfs" /bin/sh -euc "umask 022; $script" sh "$@"
"""
"""FOLDER SCRIPT...: in mount and user namespaces of its own, run a script with the container's files as root folder."""

FIRST = """\
rm -f /etc/machine-id
[ ! -e /etc/shadow ] || sed -i 's/^root:[^:]*:/root:*:/' /etc/shadow
unit=/usr/lib/systemd/system/container-getty@.service
wants=/etc/systemd/system/getty.target.wants
if [ -e "$unit" ]; then
    sed -i 's@pts/%I@tty%I@g' "$unit"
    mkdir -p "$wants"
    for tty in 1 2; do ln -sf "$unit" "$wants/container-getty@$tty.service"; done
fi
"""
"""What Proxmox does at create (PVE::LXC::Setup::Base): no machine-id, no password for root, logins on LXC's ttys."""

CLONED = "rm -f /etc/machine-id; echo > /etc/machine-id\n"
"""A new machine-id at the next start, which is no first boot to systemd: as Proxmox leaves a clone."""

WRITE = """\
while [ $# -gt 0 ]; do
    mkdir -p "${1%/*}"
    rm -f "$1"
    printf %s "$2" > "$1"
    shift 2
done
"""
"""PATH CONTENT...: files in place of whatever has their names."""

AWAIT = """\
[ ! -d "$1" ] || flock --timeout "$2" "$1" true || { echo "something still works on $1" >&2; exit 1; }
"""

UNMOUNT = """\
findmnt --raw --noheadings --output TARGET | grep "^$1/" | sort -r | xargs -r -d '\\n' umount
"""

REMOVE = """\
folder=$1/$2 old=$1/.builder/old-$2
rm -rf --one-file-system "$1/.builder/new-$2" "$old"
if [ -d "$folder" ]; then
    exec 9< "$folder"
    flock 9
    rm -f "$folder/config" "$folder/config.new"
    find "$folder" -mindepth 1 -maxdepth 1 ! -name builder.json -exec rm -rf --one-file-system {} +
    mkdir -p "$1/.builder"
    mv -T "$folder" "$old"
    rm -rf --one-file-system "$old"
fi
"""
"""ROOT CTID: `config` goes first and the record last, so that what is left by a kill still says whose it is."""

LEFT_GROUPS = """\
find /sys/fs/cgroup -maxdepth 2 -type d -name "lxc.monitor.$1" -exec rmdir {} + 2> /dev/null || :
"""
"""CTID: LXC leaves control groups of starts that failed. Those of a container that runs cannot be removed."""


def guests(said: str) -> tuple[Guest, ...]:
    """The containers of which `LOOK` printed."""
    files: dict[int, dict[str, list[str]]] = {}
    active: set[str] = set()
    for line in said.splitlines():
        place, _, rest = line.partition(":")
        name, _, file = place.partition("/")
        if name.isdecimal():
            files.setdefault(int(name), {}).setdefault(file, []).append(rest)
        elif place == "active":
            active.add(rest.strip())
    return tuple(_guest(ctid, found, str(ctid) in active) for ctid, found in sorted(files.items()))


def _guest(ctid: int, files: dict[str, list[str]], running: bool) -> Guest:
    pairs = lxc_config.parse("\n".join(files.get("config", ())))
    text = "\n".join(files.get("builder.json", ()))
    made = record(text)
    config = dict(pairs) | ({"builder.json": text} if text else {})
    return Guest(
        ctid=ctid,
        name=str(made.get("name") or config.get("lxc.uts.name") or ctid),
        running=running,
        template=ONLY_CLONED in pairs,
        lock="create" if text and "config" not in files else "",
        tags=tuple(map(str, made.get("tags", ()))),
        description=str(made.get("description", "")),
        config=config,
        raw=tuple(f"{key}: {value}" for key, value in pairs),
    )


def record(text: str) -> dict[str, Any]:
    """What a builder.json holds; nothing when it is none."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def problems(container: Container, root: str, said: str) -> Iterator[str]:
    """What of `container` a host of which `FACTS` printed `said` would refuse."""
    facts: dict[str, list[str]] = {}
    for line in said.splitlines():
        key, _, value = line.partition("=")
        facts.setdefault(key, []).append(value)
    if facts.get("uid") != ["0"]:
        yield "LXC's containers are root's here: run the builder as root"
    if facts.get("missing"):
        yield f"no {', '.join(facts['missing'])}: run apt-get install lxc uidmap tar zstd"
    elif int(facts["version"][0].partition(".")[0]) < 4:
        yield f"LXC {facts['version'][0]} is too old, 4 is needed"
    if not re.fullmatch(r"(?:/[A-Za-z0-9_.+-]+)+", root):
        yield f"{root!a} has letters that LXC's configuration cannot hold: take another folder"
    if "root" not in facts:
        yield f"{root} is not there: run mkdir -m 755 {root}"
    yield from _network_problems(container, facts.get("bridge"))
    if container.unprivileged and not all(
        lxc_config.allowed("\n".join(facts.get(table, ()))) for table in ("subuid", "subgid")
    ):
        ids = f"{FIRST_ID}-{FIRST_ID + IDS - 1}"
        mend = f"usermod --add-subuids {ids} --add-subgids {ids} root"
        yield f"root may not give ids {ids} to containers (/etc/subuid, /etc/subgid): run {mend}"
    for mode, _, path in (node.partition(" ") for node in facts.get("node", ())):
        if int(mode, 8) & 0o006 != 0o006:
            yield f"{path} has mode {mode}, which a container keeps: services cannot open it; run chmod 666 {path}"


def _network_problems(container: Container, bridge: Sequence[str] | None) -> Iterator[str]:
    network = container.network
    if network.firewall:
        yield "plain LXC has no firewall: switch it off for this container"
    if bridge is None:
        up = f"ip link add {network.bridge} type bridge && ip link set {network.bridge} up"
        yield f"there is no bridge {network.bridge}: name another, or run {up}"
        return
    filtering, mtu = bridge[0].split()
    if network.vlan is not None and filtering != "1":
        mend = f"ip link set {network.bridge} type bridge vlan_filtering 1"
        yield f"bridge {network.bridge} knows no VLANs: run {mend}"
    if network.mtu is not None and network.mtu > int(mtu):
        yield f"MTU {network.mtu} is more than the {mtu} of bridge {network.bridge}"


def errors(log: str, done: Done) -> str:
    """What LXC's log says of a start that failed, without what only says that it did."""
    found = re.findall(r" ERROR +(\S+) - \S+ - (.*)", log)
    said = [text for module, text in found if module not in ("lxc_start", "lxccontainer")]
    return " | ".join(dict.fromkeys(said[:4])) or tail(done.err) or "its first program ended at once"
