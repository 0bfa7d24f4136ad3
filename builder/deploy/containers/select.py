"""One container: its entry, or the template's, with what the command line says over it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from builder.deploy.containers.model import REFUSED, Loaded, model_of
from builder.deploy.containers.settings import BODY, CARD, CONTAINER
from builder.deploy.containers.values import folder, network_wrong
from builder.deploy.model import Container, Folder
from builder.errors import UsageError

_CHECKS: Mapping[str, Callable[[Any], str | None] | None] = {
    {**BODY, **CARD}[key.name]: key.check for key in CONTAINER if key.name != "Ctid"
}


def select(loaded: Loaded, ctid: int, **overrides: Any) -> Container:
    """The container `ctid`. `overrides` are fields of `Container` and `Network` by name, None where not given;
    `models` may be texts ``HOST:CONTAINER``.

    Without an entry it is as the one entry that servers are clones of, else as [Defaults]: of an entry it takes no
    name, address or card numbers. Its name is then ``vllm-CTID`` unless given.

    Raises UsageError for an entry that was refused, a value that is not allowed, and, all in one, for what is missing.
    """
    given = {name: _checked(name, value) for name, value in overrides.items() if value is not None}
    if ctid in loaded.containers:
        return _with(loaded.containers[ctid], given)
    where = f"container {ctid}" + (f" in {loaded.source}" if loaded.source else "")
    if refused := loaded.of(ctid, REFUSED):
        raise UsageError("; ".join(found.text for found in refused), where=where)
    if ctid < 100:
        raise UsageError("ids of containers begin with 100", where=where)
    base = _template(loaded, given)
    plain = Container(ctid, "")
    start = replace(base, ctid=ctid, name=f"vllm-{ctid}", profile=None, onboot=plain.onboot, gpus=plain.gpus)
    network = replace(start.network, mac=None)
    if network.ip not in ("dhcp", "manual") and "ip" not in given:
        raise UsageError(
            f"has no entry, and needs an address of its own: that of {base.ctid} is {network.ip}",
            where=where,
            hint="give --ip ADDRESS/LENGTH or --ip dhcp, or write an entry for it",
        )
    return _with(replace(start, network=network), given)


def _template(loaded: Loaded, given: Mapping[str, Any]) -> Container:
    """What a container without an entry is like; its `template` is the entry that this is of."""
    wanted = given.get("template")
    if wanted is not None and wanted in loaded.containers:
        return replace(loaded.containers[wanted], template=wanted)
    likely = {
        made.template
        for made in loaded.containers.values()
        if made.profile or model_of(loaded.entries.get(made.ctid, {}))
    }
    found = [ctid for ctid in loaded.templates if ctid in likely]
    if len(found) == 1 and wanted is None:
        return replace(loaded.containers[found[0]], template=found[0])
    return loaded.defaults


def _checked(name: str, value: Any) -> Any:
    if name not in _CHECKS:
        raise TypeError(f"a container has no field {name!r}")
    check = _CHECKS[name]
    plain: Any = list(value) if isinstance(value, tuple) else value
    if name == "models":
        plain = [f"{item.source}:{item.target}" if isinstance(item, Folder) else item for item in plain]
    if check is not None and (wrong := check(plain)) is not None:
        raise UsageError(f"{wrong}, not {value}" if isinstance(value, (str, int)) else wrong, where=_option(name))
    if name == "models":
        return tuple(folder(text) for text in plain)
    if name == "mac":
        return plain.upper()
    return tuple(plain) if isinstance(plain, list) else plain


def _with(container: Container, given: Mapping[str, Any]) -> Container:
    card = {name: value for name, value in given.items() if name in CARD.values()}
    body = {name: value for name, value in given.items() if name in BODY.values()}
    network = replace(container.network, **card)
    if network.ip in ("dhcp", "manual") and "gateway" not in card:
        network = replace(network, gateway=None)
    if wrong := network_wrong(network):
        raise UsageError(wrong, where=f"container {container.ctid}", hint="give --gateway")
    return replace(container, network=network, **body)


def _option(name: str) -> str:
    """The option of `builder deploy` that gives a field; its unit stands in the help."""
    return f"--{name.removesuffix('_mib').removesuffix('_gib').replace('_', '-')}"
