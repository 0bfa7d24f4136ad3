"""One entry of phoenix_lxc_configs.json. What its keys are is written in docs/containers.md."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from builder.deploy.containers import values
from builder.deploy.containers.model import REFUSED, TOLD, Finding, listed, model_of, shown
from builder.deploy.containers.reading import Entry
from builder.deploy.model import Container, Folder, Network
from builder.recipe.document import nearest
from builder.recipe.keys import between

LEFT = (
    "application_script",
    "balloon_min_mb",
    "bootstrap_ca_url",
    "dependencies",
    "enable_lifecycle_snapshots",
    "health_check",
    "id_maps",
    "integration_tests",
    "is_template",
    "nvidia_pci_ids",
    "portainer_role",
    "ports",
    "public_interface",
    "run_integration_tests",
    "secondary_network_config",
    "setup_script",
    "template",
    "template_file",
    "template_snapshot_name",
    "tests",
    "traefik_service",
    "trigger_sync_on_completion",
    "vllm",
)
"""Keys that are known and have no counterpart here."""

USED = (
    "apparmor_manages_nesting",
    "apparmor_profile",
    "boot_delay",
    "boot_order",
    "clone_from_ctid",
    "clone_from_template_ctid",
    "cores",
    "features",
    "firewall",
    "gpu_assignment",
    "lxc_options",
    "mac_address",
    "memory_mb",
    "mount_points",
    "name",
    "network_config",
    "pct_options",
    "start_at_boot",
    "static_ip",
    "storage_pool",
    "storage_size_gb",
    "swap",
    "swap_mb",
    "unprivileged",
    "volumes",
    "zfs_volumes",
)
_NETWORK = ("bridge", "gw", "hwaddr", "ip", "name", "nameserver", "nameservers")
_CARDS = re.compile(r"lxc\.mount\.entry: /dev/nvidia|lxc\.cgroup2?\.devices\.allow: c 195[: ]")


def read_entry(ctid: int, raw: Mapping[str, Any]) -> tuple[Container | None, list[Finding]]:
    """The container of an entry, None when it was refused, and what is to be said of it."""
    entry = Entry(ctid, raw)
    _sort_keys(entry)
    name = entry.text("name", raw.get("name"), values.hostname)
    if raw.get("name") in (None, ""):
        entry.find(REFUSED, "has no name")
    given: dict[str, Any] = {
        "template": _template(entry),
        "memory_mib": entry.number("memory_mb", raw.get("memory_mb"), between(16)),
        "swap_mib": entry.number(*entry.one_of(*((key, raw.get(key)) for key in ("swap_mb", "swap"))), between(0)),
        "cores": entry.number("cores", raw.get("cores"), between(1, 8192)),
        "storage": entry.text("storage_pool", raw.get("storage_pool"), values.storage),
        "root_gib": entry.number("storage_size_gb", raw.get("storage_size_gb"), between(1, 65536)),
        "gpus": _gpus(entry),
        "models": _models(entry),
        "unprivileged": entry.boolean("unprivileged", raw.get("unprivileged")),
        "nesting": _nesting(entry),
        "onboot": entry.boolean("start_at_boot", raw.get("start_at_boot")),
        "order": entry.number("boot_order", raw.get("boot_order"), between(0, 9999)),
        "delay": entry.number("boot_delay", raw.get("boot_delay"), between(0, 86400)),
        "raw": _raw(entry),
    }
    network = _network(entry)
    _tell(entry)
    if name is None or any(found.severity == REFUSED for found in entry.findings):
        return None, entry.findings
    said = {key: value for key, value in given.items() if value is not None}
    return Container(ctid, name, network=network, **said), entry.findings


def _sort_keys(entry: Entry) -> None:
    for key in entry.raw:
        if key in LEFT:
            entry.unused.append(key)
        elif key not in USED and not key.startswith("vllm_"):
            entry.unknown.append(key)


def _template(entry: Entry) -> int | None:
    pairs = ((key, entry.raw.get(key)) for key in ("clone_from_ctid", "clone_from_template_ctid"))
    return entry.number(*entry.one_of(*pairs), values.ctid)


def _gpus(entry: Entry) -> tuple[int, ...] | None:
    """Card numbers; an entry without the key has none."""
    value = entry.raw.get("gpu_assignment")
    if value is None or (isinstance(value, str) and value.strip().lower() in ("", "none")):
        return ()
    words = value if isinstance(value, list) else re.split(r"[,\s]+", str(value).strip())
    if isinstance(value, (bool, float, dict)) or not all(re.fullmatch(r"[0-9]{1,3}", str(word)) for word in words):
        entry.refuse("gpu_assignment", value, 'must be "none" or card numbers such as "0,1"')
        return None
    found = [int(word) for word in words]
    if wrong := values.gpus(found):
        entry.refuse("gpu_assignment", value, f"is wrong ({wrong})")
    return tuple(found)


def _models(entry: Entry) -> tuple[Folder, ...]:
    """Mount points that hold models; what they are in the container is read-only. Volumes are told of."""
    found = []
    for mount in entry.objects("mount_points"):
        source, target = mount.get("host_path"), mount.get("container_path")
        text = f"{source}:{target}"
        if isinstance(target, str) and "model" in target and values.models([text]) is None:
            found.append(values.folder(text))
        else:
            entry.unused.append(f"mount_points {shown(target, limit=60)}")
    if values.models([f"{folder.source}:{folder.target}" for folder in found]):
        entry.refuse("mount_points", entry.raw["mount_points"], "must have one place each in the container")
    for key in ("zfs_volumes", "volumes"):
        for volume in entry.objects(key):
            name, target = shown(volume.get("name"), limit=60), volume.get("mount_point")
            if not model_of(entry.raw):
                entry.unused.append(f"{key} {name}")
                continue
            place = target if isinstance(target, str) and not values.models([f"/srv/models:{target}"]) else "/models"
            entry.find(
                TOLD,
                f"{key} {name} is a volume of its own on storage {shown(volume.get('pool'), limit=60)}, and where the "
                f'host has it is not said here: write Models = ["/FOLDER/OF/HOST:{place}"] in containers.toml',
            )
    return tuple(found)


def _nesting(entry: Entry) -> bool | None:
    """Proxmox's features stand in pct_options, in the first generation as text in features."""
    options = entry.texts("pct_options")
    if isinstance(entry.raw.get("features"), str):
        options = entry.texts("features") + options
    elif entry.texts("features"):
        entry.unused.append("features")
    said = {name: value for name, _, value in (option.partition("=") for option in options)}
    others = (f"{name}={value}" for name, value in said.items() if name != "nesting")
    entry.unused += [f"pct_options {shown(option, limit=40)}" for option in others]
    return entry.boolean("pct_options nesting", said.get("nesting"))


def _raw(entry: Entry) -> tuple[str, ...]:
    """LXC's own lines, in both forms; the cards' devices are left out, since they come with `gpus`."""
    found: list[str] = []
    for option in entry.texts("lxc_options"):
        match = re.fullmatch(r"(lxc[a-z0-9_.-]*?)\s*[=:]\s*(.*)", option)
        line = f"{match[1]}: {match[2]}" if match else option
        if values.raw([line]):
            entry.refuse("lxc_options", option, 'must be lines "lxc.KEY=VALUE" or "lxc.KEY:VALUE"')
        elif _CARDS.match(line):
            entry.unused.append(f"lxc_options {shown(line.partition(': ')[2], limit=40)}")
        elif line not in found:
            found.append(line)
    profile = entry.text("apparmor_profile", entry.raw.get("apparmor_profile"), _word)
    nesting = entry.boolean("apparmor_manages_nesting", entry.raw.get("apparmor_manages_nesting"))
    lines = [line.partition(": ")[2] for line in found if line.startswith("lxc.apparmor.profile: ")]
    if lines:
        entry.one_of(("lxc.apparmor.profile in lxc_options", lines[-1]), ("apparmor_profile", profile))
    elif profile not in (None, "unconfined"):
        found.append(f"lxc.apparmor.profile: {profile}")
        if nesting and "lxc.apparmor.allow_nesting: 1" not in found:
            found.append("lxc.apparmor.allow_nesting: 1")
    elif profile:
        entry.unused.append('apparmor_profile "unconfined" (without that line in lxc_options)')
    return tuple(found)


def _network(entry: Entry) -> Network:
    config = entry.raw.get("network_config")
    if isinstance(config, str):
        parts = [part.strip() for part in config.split(",")]
        config = dict(zip(("ip", "gw", "nameservers"), [*parts[:2], " ".join(parts[2:])], strict=False))
    elif config is not None and not isinstance(config, dict):
        entry.refuse("network_config", config, "must be an object")
    config = config if isinstance(config, dict) else {}
    entry.unknown += [f"network_config.{key}" for key in config if key not in _NETWORK]
    if config.get("name") not in (None, "", Network.name):
        entry.unused.append(f"network_config.name {shown(config['name'], limit=40)} (it is {Network.name})")
    ip = entry.one_of(("network_config.ip", config.get("ip")), ("static_ip", entry.raw.get("static_ip")))
    mac = entry.one_of(("mac_address", entry.raw.get("mac_address")), ("network_config.hwaddr", config.get("hwaddr")))
    names = entry.one_of(*((f"network_config.{key}", config.get(key)) for key in ("nameservers", "nameserver")))
    address = entry.text(*ip, values.ip)
    given: dict[str, Any] = {
        "bridge": entry.text("network_config.bridge", config.get("bridge"), values.bridge),
        "ip": address,
        "gateway": entry.text("network_config.gw", config.get("gw"), values.gateway) if address != "dhcp" else None,
        "mac": (entry.text(*mac, values.mac) or "").upper() or None,
        "firewall": _firewall(entry),
        "nameservers": _nameservers(entry, *names),
    }
    network = Network(**{key: value for key, value in given.items() if value is not None})
    if address is not None and (wrong := values.network_wrong(network)):
        entry.find(REFUSED, f"network_config: {wrong}")
    return network


def _nameservers(entry: Entry, what: str, value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    found = re.split(r"[,;\s]+", value.strip()) if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found) or values.nameservers(found):
        entry.refuse(what, value, "must be IP addresses")
        return None
    return tuple(found)


def _firewall(entry: Entry) -> bool | None:
    firewall = entry.raw.get("firewall")
    if firewall is None:
        return None
    if not isinstance(firewall, dict):
        entry.refuse("firewall", firewall, "must be an object")
        return None
    if firewall.get("rules"):
        entry.unused.append("firewall.rules")
    entry.unknown += [f"firewall.{key}" for key in firewall if key not in ("enabled", "rules")]
    return entry.boolean("firewall.enabled", firewall.get("enabled"))


def _tell(entry: Entry) -> None:
    """One line with all that has no counterpart, one with all that was not said."""
    parts = [f"not used: {listed(sorted(entry.unused))}"] if entry.unused else []
    if entry.unknown:
        parts.append(f"unknown: {listed(_guessed(key) for key in sorted(entry.unknown))}")
    if parts:
        entry.find(TOLD, "; ".join(parts))
    plain = Container(entry.ctid, "")
    unsaid = {
        "memory_mb": plain.memory_mib,
        "cores": plain.cores,
        "storage_size_gb": plain.root_gib,
        "unprivileged": plain.unprivileged,
        "network_config": plain.network.ip,
    }
    missing = [f"{key} {shown(value)}" for key, value in unsaid.items() if entry.raw.get(key) is None]
    if missing:
        entry.find(TOLD, f"not said, so taken: {listed(missing)}")


def _guessed(key: str) -> str:
    """A key that is not known, with the one that was probably meant."""
    near = None if "." in key else nearest(key, (*USED, *LEFT))
    plain = key if re.fullmatch(r"[\w.]{1,60}", key, re.ASCII) else shown(key, limit=60)
    return f"{plain} ({near}?)" if near else plain


def _word(value: str) -> str | None:
    return None if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", value) else "must be letters, digits, '_', '.' and '-'"
