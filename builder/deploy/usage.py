"""Who uses how much of the host's cards right now."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from builder.deploy import gpu
from builder.deploy.gpu.model import Card
from builder.deploy.inside import plain
from builder.deploy.model import Guest
from builder.deploy.shell import Shell

_SCRIPT = f"""
kept={gpu.DRIVER_FOLDER}
smi=$(command -v nvidia-smi)
if [ -x "$kept/bin/nvidia-smi" ]; then smi=$kept/bin/nvidia-smi; export LD_LIBRARY_PATH="$kept"; fi
[ -n "$smi" ] || {{ echo "no nvidia-smi on the host" >&2; exit 1; }}
timeout 30 "$smi" --query-gpu=pci.bus_id,utilization.gpu --format=csv,noheader,nounits || exit 1
echo == processes
timeout 30 "$smi" --query-compute-apps=gpu_bus_id,pid,used_memory --format=csv,noheader,nounits |
    while IFS=', ' read -r bus pid used; do
        [ -r "/proc/$pid/cgroup" ] && echo "$bus $pid ${{used:-0}} $(tr '\\n' ' ' < "/proc/$pid/cgroup")"
    done
exit 0
"""
_CTID = re.compile(r"/lxc(?:\.payload\.|/)(\d+)(?:/|\s|$)")
"""A container in a control group of Proxmox (lxc/ID) or of plain LXC (lxc.payload.ID)."""


@dataclass(frozen=True)
class Holder:
    """A container that runs something on a card, or may."""

    ctid: int | None  # None: a process of the host
    name: str
    ours: bool
    used_mib: int | None  # None: nothing of it was seen on the card


@dataclass(frozen=True)
class Usage:
    """One card with those who hold it."""

    card: Card
    busy: int | None  # percent of the time; None where it could not be read
    holders: tuple[Holder, ...]


def usage(shell: Shell, guests: Sequence[Guest]) -> tuple[tuple[Usage, ...], str]:
    """The host's cards, and why more could not be seen (empty when it could). Raises BuilderError as `Shell.ask`.

    `guests` have their whole configuration: a container with a card holds it as long as it runs, seen or not.
    """
    cards = gpu.look(shell).cards
    if not cards:
        return (), ""
    done = shell.ask("sh", "-c", _SCRIPT, timeout=90)
    busy, used = read(done.text) if done.status == 0 else ({}, {})
    why = "" if done.status == 0 else plain(done.err.decode(errors="replace")) or f"exit {done.status}"
    promises = gpu.promises([guest for guest in guests if guest.running], {})
    by_id = {guest.ctid: guest for guest in guests}
    rows = []
    for card in cards:
        here = {key[1]: mib for key, mib in used.items() if key[0] == card.bus}
        ids = {*here, *(promise.ctid for promise in promises if promise.card == card.index)}
        holders = [_holder(ctid, by_id, here) for ctid in sorted(ids, key=lambda ctid: (ctid is None, ctid or 0))]
        rows.append(Usage(card, busy.get(card.bus), tuple(holders)))
    return tuple(rows), why


def read(text: str) -> tuple[dict[str, int], dict[tuple[str, int | None], int]]:
    """What the script printed: percent busy by PCI address, and MiB by PCI address and container."""
    first, _, second = text.partition("== processes")
    busy: dict[str, int] = {}
    for line in first.splitlines():
        bus, _, percent = (part.strip() for part in line.partition(","))
        if percent.isdecimal():
            busy[_bus(bus)] = int(percent)
    used: dict[tuple[str, int | None], int] = {}
    for line in second.splitlines():
        fields = line.split(maxsplit=3)
        if len(fields) < 3:
            continue
        found = _CTID.search(fields[3]) if len(fields) == 4 else None
        key = (_bus(fields[0]), int(found[1]) if found else None)
        used[key] = used.get(key, 0) + (int(fields[2]) if fields[2].isdecimal() else 0)
    return busy, used


def _holder(ctid: int | None, guests: dict[int, Guest], used: dict[int | None, int]) -> Holder:
    guest = guests.get(ctid) if ctid is not None else None
    name = guest.name if guest is not None else "processes of the host" if ctid is None else "?"
    return Holder(ctid, plain(name), guest is not None and guest.mark is not None, used.get(ctid))


def _bus(address: str) -> str:
    """nvidia-smi writes eight digits of domain, the driver's /proc four."""
    return address.lower()[-12:]
