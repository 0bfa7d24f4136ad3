"""The settings of containers.toml: every key, its meaning and limits, and the field that it fills."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from builder.deploy.containers import values
from builder.deploy.model import Container, Network
from builder.recipe.keys import Key, Type, between
from builder.recipe.manual import key_table
from builder.recipe.schema import table_schema

TOP = (
    Key(
        "TemplateIds",
        Type.TEXTS,
        'Where templates go: ids and ranges of ids, such as ["920", "923-929"].',
        check=values.ranges,
    ),
    Key("SpareIds", Type.TEXTS, "Where the new container of a `--replace` goes.", check=values.ranges),
)

_OWN = (
    Key("Ctid", Type.INT, "The container's id.", required=True, check=values.ctid),
    Key("Name", Type.TEXT, "Its host name, and the deployment's name.", required=True, check=values.hostname),
)

SHARED = (
    Key("Template", Type.INT, "The id of the entry that it is a clone of; none for a template.", check=values.ctid),
    Key("Profile", Type.TEXT, "What it serves: a profile of the recipe.", check=values.profile),
    Key("Bridge", Type.TEXT, "The host's bridge that it is on.", default=Network.bridge, check=values.bridge),
    Key("Ip", Type.TEXT, "IPv4 address with prefix length, dhcp or manual.", default=Network.ip, check=values.ip),
    Key("Gateway", Type.TEXT, "The way out of the network of a fixed address.", check=values.gateway),
    Key("Mac", Type.TEXT, "Hardware address; when not given, one that follows from Name and Ctid.", check=values.mac),
    Key("Vlan", Type.INT, "VLAN tag.", check=values.vlan),
    Key("Mtu", Type.INT, "Largest packet in bytes; when not given, the bridge's.", check=values.mtu),
    Key("Firewall", Type.BOOL, "Proxmox's firewall looks at its packets; the rules are Proxmox's.", default=False),
    Key("Nameservers", Type.TEXTS, "IP addresses; when not given, the host's.", check=values.nameservers),
    Key("SearchDomain", Type.TEXT, "DNS search domain.", check=values.hostname),
    Key("MemoryMiB", Type.INT, "Memory, in MiB.", default=Container.memory_mib, check=between(16)),
    Key("SwapMiB", Type.INT, "Swap, in MiB.", default=Container.swap_mib, check=between(0)),
    Key("Cores", Type.INT, "CPU cores.", default=Container.cores, check=between(1, 8192)),
    Key(
        "Storage",
        Type.TEXT,
        "The host's storage for its root disk; when not given, the first that holds containers.",
        check=values.storage,
    ),
    Key("RootGiB", Type.INT, "Size of its root disk, in GiB.", default=Container.root_gib, check=between(1, 65536)),
    Key(
        "Gpus",
        Type.INTS,
        "Numbers of its cards, as in /dev/nvidia0; [] for none; when not given, as many as the profile wants.",
        check=values.gpus,
    ),
    Key(
        "Models",
        Type.TEXTS,
        "Folders that it sees read-only: /FOLDER/OF/HOST:/FOLDER/IN/CONTAINER.",
        check=values.models,
    ),
    Key("OnBoot", Type.BOOL, "It starts with the host.", default=Container.onboot),
    Key("Order", Type.INT, "Its place in the order of start.", check=between(0, 9999)),
    Key("Delay", Type.INT, "Seconds until the next one starts.", check=between(0, 86400)),
    Key("Tags", Type.TEXTS, "Proxmox's tags, beside the builder's own.", check=values.tags),
    Key("Raw", Type.TEXTS, "Further lines of its LXC configuration: lxc.KEY: VALUE.", check=values.raw),
    Key("Unprivileged", Type.BOOL, "Its root is nobody on the host.", default=Container.unprivileged),
    Key("Nesting", Type.BOOL, "It may make namespaces, which its systemd needs.", default=Container.nesting),
)

CONTAINER = (*_OWN, *SHARED)

DEFAULTS = tuple(key for key in SHARED if key.name != "Mac")

CARD = {
    "Bridge": "bridge",
    "Ip": "ip",
    "Gateway": "gateway",
    "Mac": "mac",
    "Vlan": "vlan",
    "Mtu": "mtu",
    "Firewall": "firewall",
    "Nameservers": "nameservers",
    "SearchDomain": "searchdomain",
}
"""Keys that fill a field of `Network`."""

BODY = {
    "Ctid": "ctid",
    "Name": "name",
    "Template": "template",
    "Profile": "profile",
    "MemoryMiB": "memory_mib",
    "SwapMiB": "swap_mib",
    "Cores": "cores",
    "Storage": "storage",
    "RootGiB": "root_gib",
    "Gpus": "gpus",
    "Models": "models",
    "OnBoot": "onboot",
    "Order": "order",
    "Delay": "delay",
    "Tags": "tags",
    "Raw": "raw",
    "Unprivileged": "unprivileged",
    "Nesting": "nesting",
}
"""Keys that fill a field of `Container`."""


def container(given: Mapping[str, Any]) -> Container:
    """The container that checked values, by the names of `CONTAINER`, describe; what is absent has its default."""
    card = {field: _frozen(key, given[key]) for key, field in CARD.items() if key in given}
    body = {field: _frozen(key, given[key]) for key, field in BODY.items() if key in given}
    return Container(**{"ctid": 0, "name": "", **body}, network=Network(**card))


def values_of(container: Container) -> dict[str, Any]:
    """The values of a container, by the names of `CONTAINER`; None is what is left to the host or the builder."""
    found = {key: _thawed(key, getattr(container, field)) for key, field in BODY.items()}
    found |= {key: _thawed(key, getattr(container.network, field)) for key, field in CARD.items()}
    return {key.name: found[key.name] for key in CONTAINER}


def written(container: Container) -> dict[str, Any]:
    """The same without what is the default: what a file must say."""
    plain = values_of(Container(0, ""))
    return {key: value for key, value in values_of(container).items() if value != plain[key]}


def manual() -> str:
    """The tables of keys: what docs/containers-keys.md holds."""
    made = "Written by `builder containers schema --markdown`. What the file is: [containers.md](containers.md)."
    defaults = "The same keys but Ctid, Name and Mac: what holds for every container that does not say otherwise.\n"
    parts = (
        f"# Keys of containers.toml\n\n{made}\n",
        f"## The top of the file\n\n{key_table(TOP)}",
        f"## [Defaults]\n\n{defaults}",
        f"## [[Container]]\n\n{key_table(CONTAINER)}",
    )
    return "\n".join(parts)


def schema() -> dict[str, Any]:
    """The JSON Schema of containers.toml (draft 2020-12), for editors: names and types."""
    top = table_schema(TOP)
    top["properties"] |= {
        "Defaults": table_schema(DEFAULTS),
        "Container": {"type": "array", "items": table_schema(CONTAINER)},
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Containers", **top}


def _frozen(key: str, value: Any) -> Any:
    if key == "Models":
        return tuple(values.folder(text) for text in value)
    if key == "Mac":
        return value.upper()
    return tuple(value) if isinstance(value, list) else value


def _thawed(key: str, value: Any) -> Any:
    if key == "Models":
        return [f"{folder.source}:{folder.target}" for folder in value]
    return list(value) if isinstance(value, tuple) else value
