"""What the values of a container may be: what Proxmox VE 8 and 9 take.

Sources: pct.conf(5), and pve-common's JSONSchema.pm for ids, tags and addresses.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Interface, ip_address

from builder.deploy.model import Folder, Network
from builder.recipe.keys import between, matches

ctid = between(100, 999_999_999)
vlan = between(1, 4094)
mtu = between(64, 65535)
bridge = matches(r"[A-Za-z0-9_.-]{1,15}", "the name of a bridge of the host")
storage = matches(r"[A-Za-z][A-Za-z0-9_.-]*[A-Za-z0-9]", "the name of one of the host's storages")
profile = matches(r"[a-z0-9][a-z0-9._-]*", "lower-case letters, digits, '.', '_' and '-', a letter or digit first")

_LABELS = re.compile(r"(?=.{1,63}$)[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*")
_TAG = re.compile(r"[a-z0-9_][a-z0-9_+.-]*")
_PATH = re.compile(r"(/(?!\.{1,2}(/|$))[^/\s:\\]+)+")
_RAW = re.compile(r"lxc(\.[a-z0-9_-]+)+: \S.*")


def hostname(value: str) -> str | None:
    """A `Key.check` of a host name."""
    if _LABELS.fullmatch(value):
        return None
    return "must be a host name: letters, digits, '-' and '.', at most 63 in all"


def ip(value: str) -> str | None:
    """A `Key.check` of a container's address."""
    wrong = 'must be "dhcp", "manual" or an IPv4 address with its prefix length, such as 10.0.0.50/24'
    if value in ("dhcp", "manual"):
        return None
    if not re.fullmatch(r"[0-9.]+/[0-9]{1,2}", value):
        return wrong
    try:
        address = IPv4Interface(value)
    except ValueError:
        return wrong
    if address.is_multicast or address.is_loopback or address.is_unspecified:
        return "must be an address that a machine can have"
    ends = (address.network.network_address, address.network.broadcast_address)
    if address.network.prefixlen == 0 or (address.network.prefixlen < 31 and address.ip in ends):
        return f"must be an address within {address.network}, which is neither its first nor its last"
    return None


def gateway(value: str) -> str | None:
    """A `Key.check` of a gateway's address."""
    try:
        return None if str(IPv4Address(value)) == value else "must be an IPv4 address"
    except ValueError:
        return "must be an IPv4 address"


def mac(value: str) -> str | None:
    """A `Key.check` of a hardware address."""
    if not re.fullmatch(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}", value):
        return "must be a MAC address, such as 02:00:00:00:00:50"
    if int(value[:2], 16) & 1:
        return "must be the address of one card, and a first octet that is odd means many (multicast)"
    return "must not be all zeros" if not int(value.replace(":", ""), 16) else None


def nameservers(value: list[str]) -> str | None:
    """A `Key.check` of addresses of name servers."""
    for text in value:
        try:
            ip_address(text)
        except ValueError:
            return f"{text!a} is no IP address"
    return None


def gpus(value: list[int]) -> str | None:
    """A `Key.check` of card numbers."""
    if any(not 0 <= number <= 255 for number in value):
        return "a card's number is from 0 to 255, as in /dev/nvidia0"
    return "a card stands there twice" if len(set(value)) != len(value) else None


def models(value: list[str]) -> str | None:
    """A `Key.check` of folders ``HOST:CONTAINER``."""
    for text in value:
        halves = text.split(":")
        if len(halves) != 2 or not all(_PATH.fullmatch(half) and half.isprintable() for half in halves):
            return f'{text!a} is not "/FOLDER/OF/HOST:/FOLDER/IN/CONTAINER" without "..", blanks and backslashes'
    targets = [text.split(":")[1] for text in value]
    return "two folders have one place in the container" if len(set(targets)) != len(targets) else None


def tags(value: list[str]) -> str | None:
    """A `Key.check` of tags."""
    for text in value:
        if not _TAG.fullmatch(text):
            return f"{text!a} is no tag: lower-case letters, digits, '_', '+', '.' and '-', no sign first but '_'"
        if text.startswith("builder"):
            return f"{text!a}: tags that begin with builder are the builder's own"
    return None


def raw(value: list[str]) -> str | None:
    """A `Key.check` of LXC's own lines."""
    for text in value:
        if not _RAW.fullmatch(text) or not text.isprintable():
            return f'{text!a} is not "lxc.KEY: VALUE"'
    return None


def ranges(value: list[str]) -> str | None:
    """A `Key.check` of ids such as ``920`` and ranges such as ``923-929``."""
    total = 0
    for text in value:
        match = re.fullmatch(r"([1-9][0-9]{2,8})(?:-([1-9][0-9]{2,8}))?", text)
        if match is None or int(match[1]) > int(match[2] or match[1]):
            return f'{text!a} is neither an id from 100 on nor a range of ids such as "923-929"'
        total += int(match[2] or match[1]) - int(match[1]) + 1
    return "at most 1000 ids can be given" if total > 1000 else None


def ids(value: list[str]) -> tuple[int, ...]:
    """The ids that `ranges` has let pass, each once, in order."""
    found: dict[int, None] = {}
    for text in value:
        first, _, last = text.partition("-")
        found.update(dict.fromkeys(range(int(first), int(last or first) + 1)))
    return tuple(found)


def network_wrong(network: Network) -> str | None:
    """What is wrong with a network card whose values are right one by one, None when nothing is."""
    if network.gateway is None:
        return None
    if network.ip in ("dhcp", "manual"):
        return f"Gateway is {network.gateway}, and Ip is {network.ip}: only a fixed address has a gateway here"
    address = IPv4Interface(network.ip)
    if IPv4Address(network.gateway) not in address.network:
        return f"Gateway {network.gateway} is not in the network of Ip, {address.network}"
    return f"Gateway and Ip are both {network.gateway}" if str(address.ip) == network.gateway else None


def folder(text: str) -> Folder:
    """The folder that an entry ``HOST:CONTAINER`` means."""
    source, _, target = text.partition(":")
    return Folder(source, target)
