"""What a host has of NVIDIA: one command that only looks, and the reading of what it prints."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping

from builder.deploy.gpu.model import Card, Driver, Gpus
from builder.deploy.shell import Shell

DRIVER_FOLDER = "/var/lib/builder/nvidia/current"
"""Where the host unit keeps the userspace of the running driver: a link, so that a mount of it names no version."""

_QUERY = "pci.bus_id,memory.total,memory.used,compute_cap,mig.mode.current"
_SCRIPT = f"""
kept={DRIVER_FOLDER}
cat /proc/driver/nvidia/version 2>/dev/null
for file in /proc/driver/nvidia/gpus/*/information; do
    [ ! -e "$file" ] || {{ echo == card; cat "$file"; }}
done
echo == nodes
for node in /dev/nvidia*; do [ ! -c "$node" ] || echo "$node"; done
echo == userspace
ls "$kept" 2>/dev/null
echo == memory
smi=$(command -v nvidia-smi)
if [ -x "$kept/bin/nvidia-smi" ]; then smi=$kept/bin/nvidia-smi; export LD_LIBRARY_PATH="$kept"; fi
[ -z "$smi" ] || timeout 30 "$smi" --query-gpu={_QUERY} --format=csv,noheader,nounits
exit 0
"""
"""The kept nvidia-smi goes first: after an upgrade without a reboot it is the one that fits the running driver."""

_VERSION = re.compile(r"^NVRM version:.*?\s(\d+(?:\.\d+)+)\s", re.MULTILINE)


def look(shell: Shell) -> Gpus:
    """The driver, its cards and nodes. What a host does not tell is empty or 0 in the result.

    Files: /proc/driver/nvidia/version and /proc/driver/nvidia/gpus/*/information (NVIDIA's README, chapter "Using the
    /proc file system interface"). Raises BuilderError when the host cannot be asked.
    """
    return read(shell.ask("sh", "-c", _SCRIPT, timeout=60).text)


def read(text: str) -> Gpus:
    """The result of what the command printed."""
    parts = [""]
    for line in text.splitlines():
        if line.startswith("== "):
            parts.append("")
        parts[-1] += f"{line}\n"
    version, named = parts[0], [_section(part) for part in parts[1:]]
    sections = dict(named)
    memory = dict(_memory(sections.get("memory", "")))
    cards = [_card(body, memory) for title, body in named if title == "card"]
    found = _VERSION.search(version)
    driver = None
    if found:
        kept = f"libcuda.so.{found[1]}" in sections.get("userspace", "").split()
        driver = Driver(found[1], "Open Kernel Module" in version, DRIVER_FOLDER if kept else None)
    return Gpus(
        driver=driver,
        cards=tuple(sorted((card for card in cards if card is not None), key=lambda card: card.index)),
        nodes=tuple(sorted(sections.get("nodes", "").splitlines())),
    )


def _section(part: str) -> tuple[str, str]:
    title, _, body = part.partition("\n")
    return title.removeprefix("== "), body


def _card(information: str, memory: Mapping[str, list[str]]) -> Card | None:
    """One card; None when the driver gives it no minor number, so that no node leads to it."""
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in information.splitlines())}
    minor, bus = told.get("Device Minor", ""), _bus(told.get("Bus Location", ""))
    if not minor.isdecimal():
        return None
    total, used, capability, mig = memory.get(bus, ["", "", "", ""])
    return Card(
        index=int(minor),
        name=told.get("Model", "").removeprefix("NVIDIA "),
        bus=bus,
        memory_mib=_number(total),
        used_mib=_number(used),
        capability=capability if re.fullmatch(r"\d+\.\d+", capability) else "",
        mig=mig == "Enabled",
    )


def _memory(lines: str) -> Iterator[tuple[str, list[str]]]:
    """nvidia-smi's rows by PCI address. Anything else that it says is no row."""
    for row in csv.reader(lines.splitlines(), skipinitialspace=True):
        if len(row) == 5 and (bus := _bus(row[0].strip())):
            yield bus, [value.strip() for value in row[1:]]


def _bus(address: str) -> str:
    """A PCI address with four digits of domain, as lspci has it; nvidia-smi writes eight. Empty when it is none."""
    domain, colon, rest = address.lower().partition(":")
    if not re.fullmatch(r"[0-9a-f]+", domain) or not colon:
        return ""
    return f"{int(domain, 16):04x}:{rest}"


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0
