"""From phoenix_lxc_configs.json to containers: every generation as it is, and all that is wrong with it told.

Nothing in the file is an error of the reader's, but a file that is no JSON or has no containers at all: an entry that
cannot be used is refused by itself.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from builder.deploy.containers.entry import read_entry
from builder.deploy.containers.model import CONTRADICTION, REFUSED, TOLD, Finding, Loaded, circles, identities, shown
from builder.deploy.containers.values import ctid as id_wrong
from builder.deploy.model import Container
from builder.errors import UsageError
from builder.recipe.document import nearest

_TOP = ("$schema", "lxc_configs", "nvidia_driver_version", "nvidia_repo_url", "nvidia_runfile_url")


class _Object(dict[str, Any]):
    """A JSON object that knows which of its keys stood there more than once."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.repeated = tuple(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)


def load(path: Path) -> Loaded:
    """The containers of the file at `path`, with what is to be said of them.

    Raises UsageError when it cannot be read, is no JSON (with the line), or has no `lxc_configs`.
    """
    data = _parse(path)
    configs = data.get("lxc_configs") if isinstance(data, _Object) else None
    if not isinstance(data, _Object) or not isinstance(configs, _Object):
        raise UsageError("has no object lxc_configs", where=path, hint="it must hold one object for each container")
    findings = [*_top(data), *_repeated(None, configs)]
    entries: dict[int, Mapping[str, Any]] = {}
    containers: dict[int, Container] = {}
    for key, entry in configs.items():
        if not re.fullmatch(r"[1-9][0-9]{2,8}", key) or id_wrong(int(key)):
            findings.append(
                Finding(None, REFUSED, f"lxc_configs has {shown(key, limit=40)}, which is no id from 100 on")
            )
        elif not isinstance(entry, _Object):
            findings.append(Finding(int(key), REFUSED, "its entry is no object"))
        else:
            ctid = int(key)
            entries[ctid] = entry
            findings += _repeated(ctid, entry)
            container, found = read_entry(ctid, entry)
            findings += found
            if container is not None:
                containers[ctid] = container
    findings += _across(containers, entries)
    for ctid in circles({ctid: made.template for ctid, made in containers.items()}):
        findings.append(Finding(ctid, REFUSED, "clone_from_ctid makes it a clone of itself in the end"))
        del containers[ctid]
    findings.sort(key=lambda found: found.ctid or 0)
    ordered = {ctid: containers[ctid] for ctid in sorted(containers)}
    return Loaded(ordered, {ctid: entries[ctid] for ctid in sorted(entries)}, findings=tuple(findings), source=path)


def _parse(path: Path) -> Any:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UsageError("is not UTF-8", where=f"{path}:{line}") from error
    except (OSError, ValueError) as error:
        raise UsageError(getattr(error, "strerror", None) or str(error), where=path) from error
    try:
        data = json.loads(text, object_pairs_hook=_Object)
    except json.JSONDecodeError as error:
        raise UsageError(f"is no JSON: {error.msg}", where=f"{path}:{error.lineno}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"is no JSON that can be read: {error}", where=path) from error
    if _deeper(data, 32):
        raise UsageError("has values nested more than 32 deep", where=path)
    return data


def _deeper(value: Any, levels: int) -> bool:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(_deeper(item, levels - 1) for item in items) if levels else True


def _top(data: _Object) -> list[Finding]:
    findings = _repeated(None, data)
    known = [key for key in data if key in _TOP and key != "lxc_configs"]
    unknown = [key for key in data if key not in _TOP]
    if known:
        text = f"not used: {', '.join(known)} (the driver is the host's, the rest comes with the recipe)"
        findings.append(Finding(None, TOLD, text))
    if unknown:
        near = {key: nearest(key, _TOP) for key in unknown}
        names = ", ".join(shown(key, limit=40) + (f" ({near[key]}?)" if near[key] else "") for key in unknown)
        findings.append(Finding(None, TOLD, f"unknown: {names}"))
    return findings


def _repeated(ctid: int | None, value: Any, path: str = "") -> list[Finding]:
    """Keys that stand twice in an object, or in one within it; those of containers are looked at one by one."""
    findings = []
    if isinstance(value, _Object):
        for key in value.repeated:
            text = f"{path}{shown(key, limit=40)} stands there more than once: the last one decides"
            findings.append(Finding(ctid, CONTRADICTION, text))
        deeper = value.items() if ctid is not None else ()
        for key, item in deeper:
            findings += _repeated(ctid, item, f"{path}{key if key.isprintable() else '?'}.")
    elif isinstance(value, list):
        for item in value:
            findings += _repeated(ctid, item, path)
    return findings


def _across(containers: Mapping[int, Container], entries: Mapping[int, Any]) -> list[Finding]:
    """What two entries have in common and may not, and clones of what is not there."""
    findings = []
    holders: dict[tuple[str, str], list[int]] = {}
    for ctid, made in containers.items():
        for key, value in identities(made).items():
            holders.setdefault((_PHOENIX[key], value), []).append(ctid)
        if made.template is not None and made.template not in entries:
            findings.append(Finding(ctid, TOLD, f"clone_from_ctid is {made.template}, which has no entry here"))
    for (key, value), ctids in holders.items():
        for ctid in ctids if len(ctids) > 1 else ():
            others = ", ".join(str(other) for other in ctids if other != ctid)
            text = f"{key} {value} is also that of {others}: only one of them can run"
            findings.append(Finding(ctid, CONTRADICTION, text))
    return findings


_PHOENIX = {"Name": "name", "Ip": "network_config.ip", "Mac": "mac_address"}
