"""The formats that Proxmox VE names in its schema, as PVE::JSONSchema and PVE::LXC::Config verify them."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """A form that a value may have, and how a person calls it."""

    fits: Callable[[str], bool]
    meaning: str


def _like(pattern: str, meaning: str) -> Format:
    compiled = re.compile(pattern, re.ASCII)
    return Format(lambda value: compiled.fullmatch(value) is not None, meaning)


def _is_address(value: str, version: int) -> bool:
    try:
        return ipaddress.ip_address(value).version == version and "%" not in value
    except ValueError:
        return False


def _is_network(value: str, version: int) -> bool:
    address, slash, length = value.partition("/")
    longest = 32 if version == 4 else 128
    return bool(slash) and _is_address(address, version) and length.isdecimal() and 8 <= int(length) <= longest


def _is_nameserver(value: str) -> bool:
    address, scope, interface = value.partition("%")
    if scope:
        linked = address.lower().startswith("fe80:") and re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{1,20}", interface)
        return bool(linked) and _is_address(address, 6)
    return _is_address(value, 4) or _is_address(value, 6)


_ID = r"[A-Za-z][A-Za-z0-9_.-]*[A-Za-z0-9]"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_CLIMBS = re.compile(r"/\.\.?(?:/|\Z)|\A\.\./")
_CONTENTS = "rootdir|images|vztmpl|iso|backup|snippets|import|none"

FORMATS: Mapping[str, Format] = {
    "disk-size": _like(r"\d+(?:\.\d+)?[KMGT]?", "a size such as 32G"),
    "dns-name": _like(
        rf"(?:{_LABEL}\.)*{_LABEL}",
        "a DNS name: letters, digits and dashes, labels separated by dots, no dash at either end of a label",
    ),
    "ipv4": Format(lambda value: _is_address(value, 4), "an IPv4 address"),
    "ipv6": Format(lambda value: _is_address(value, 6), "an IPv6 address"),
    "lxc-ip-with-ll-iface": Format(_is_nameserver, "an IP address"),
    "mac-addr": _like(
        r"[A-Fa-f0-9][02468aceACE](?::[A-Fa-f0-9]{2}){5}",
        "a unicast MAC address such as BC:24:11:00:09:21 (the second digit is even)",
    ),
    "pve-configid": _like(r"[A-Za-z][A-Za-z0-9_-]+", "a name of letters, digits, _ and -"),
    "pve-ct-timezone": _like(r"host|[A-Za-z0-9_+-]+(?:/[A-Za-z0-9_+-]+)*", "a time zone or host"),
    "pve-ipv4-config": Format(
        lambda value: value in ("dhcp", "manual") or _is_network(value, 4),
        "an IPv4 address with its prefix length such as 10.0.0.21/24, dhcp or manual",
    ),
    "pve-ipv6-config": Format(
        lambda value: value in ("auto", "dhcp", "manual") or _is_network(value, 6),
        "an IPv6 address with its prefix length, auto, dhcp or manual",
    ),
    "pve-lxc-dev-string": Format(
        lambda value: value.startswith("/dev/") and _CLIMBS.search(value) is None, "the path of a node below /dev/"
    ),
    "pve-lxc-mp-string": Format(
        lambda value: _CLIMBS.search(value) is None, "a volume or path without the steps . and .."
    ),
    "pve-node": _like(_LABEL, "the name of a node"),
    "pve-poolid": _like(rf"{_LABEL}(?:[/._A-Za-z0-9-]*)", "the name of a pool"),
    "pve-startup-order": _like(
        r"(?:(?:order=)?\d+|up=\d+|down=\d+)(?:,(?:(?:order=)?\d+|up=\d+|down=\d+))*",
        "order=N, up=SECONDS and down=SECONDS, separated by commas",
    ),
    "pve-storage-content": _like(_CONTENTS, f"one of {_CONTENTS.replace('|', ', ')}"),
    "pve-storage-id": _like(_ID, "the name of a storage"),
    "pve-tag": _like(
        r"[A-Za-z0-9_][A-Za-z0-9_+.-]*", "a tag: letters, digits, _ + . - and first a letter, a digit or _"
    ),
    "pve-task-status-type": _like(r"ok|error|warning|unknown", "one of ok, error, warning, unknown"),
    "pve-vmid": _like(r"[1-9][0-9]{2,8}", "a container id from 100 to 999999999"),
    "pve-volume-id": _like(rf"{_ID}:\S+", "a volume such as local:vztmpl/NAME.tar.zst"),
}


def problem(name: str, value: str) -> str | None:
    """What is wrong with `value`, which must have the format `name`; None when nothing is.

    ``NAME-list`` is any number of them, separated by commas, semicolons or white space. Raises KeyError for a format
    that is not known here.
    """
    base = name.removesuffix("-list")
    form = FORMATS[base]
    if base == name:
        return None if form.fits(value) else f"must be {form.meaning}"
    wrong = [part for part in re.split(r"[,;\s]+", value) if part and not form.fits(part)]
    return f"{wrong[0]!a} must be {form.meaning}" if wrong else None
