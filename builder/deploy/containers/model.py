"""What a file of containers says, and what is to be said of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from builder.deploy.model import Container

TOLD = "told"
CONTRADICTION = "contradiction"
REFUSED = "refused"


@dataclass(frozen=True)
class Finding:
    """One thing to be known about a file of containers."""

    ctid: int | None  # None: of the file as a whole
    severity: str  # "told": left as it is; "contradiction": a rule decided; "refused": no container is made of it
    text: str  # one printable line


_PLAIN = Container(0, "")


@dataclass(frozen=True)
class Loaded:
    """The containers of a file."""

    containers: Mapping[int, Container] = field(default_factory=dict)  # by ctid, without what was refused
    entries: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)  # as in phoenix_lxc_configs.json, whole
    template_ids: tuple[int, ...] = ()  # empty: not said
    spare_ids: tuple[int, ...] = ()  # empty: not said
    findings: tuple[Finding, ...] = ()
    source: Path | None = None  # None: there is no file
    defaults: Container = _PLAIN  # what a container without an entry has

    @property
    def templates(self) -> tuple[int, ...]:
        """The entries that others are clones of."""
        named = {container.template for container in self.containers.values()}
        return tuple(sorted(ctid for ctid in named if ctid is not None and ctid in self.containers))

    def of(self, ctid: int | None, *severities: str) -> tuple[Finding, ...]:
        """The findings about `ctid`, of these severities, of every one when none is given."""
        return tuple(
            found for found in self.findings if found.ctid == ctid and (not severities or found.severity in severities)
        )


def model_of(entry: Mapping[str, Any]) -> str:
    """The model that an entry of phoenix_lxc_configs.json serves by its own keys; "" when it serves none."""
    engine = entry.get("vllm_engine_config")
    nested = engine.get("ModelConfig") if isinstance(engine, dict) else None
    arguments = entry.get("vllm_args")
    flags = arguments if isinstance(arguments, list) else []
    said = (
        next((value for flag, value in pairwise(flags) if flag == "--model"), None),
        entry.get("vllm_model"),
        nested.get("model") if isinstance(nested, dict) else None,
    )
    return next((value for value in said if isinstance(value, str) and value not in ("", "none")), "")


def circles(templates: Mapping[int, int | None]) -> set[int]:
    """Those of the containers, each with what it is a clone of, that are clones of themselves in the end."""
    found = set()
    for start in templates:
        at, seen = templates[start], set[int]()
        while at is not None and at not in seen:
            seen.add(at)
            at = templates.get(at)
        if start in seen:
            found.add(start)
    return found


def identities(container: Container) -> dict[str, str]:
    """What no other container may have too, where it is fixed, by its key."""
    found = {"Name": container.name.casefold()}
    if container.network.ip not in ("dhcp", "manual"):
        found["Ip"] = container.network.ip.partition("/")[0]
    if container.network.mac is not None:
        found["Mac"] = container.network.mac
    return found


_WORD = r"(?:pass(?!through)|token(?!iz|s)|secret|credential|api[-_]?key|private|auth|hash)"
_SECRET = re.compile(_WORD, re.IGNORECASE)
_TOKEN = re.compile(
    rf"(?<=://)[^/@\s]+(?=@)|\b(?:hf|sk|gh[a-z]|glpat)[-_]\w{{8,}}|[\w.-]*{_WORD}[\w.-]*[=:]\s*\S+",
    re.IGNORECASE,
)


def shown(value: Any, key: str = "", limit: int = 0) -> str:
    """`value` as JSON in printable ASCII, at most `limit` letters; without what looks secret by key or form."""
    text = json.dumps(_hushed(value, key), ensure_ascii=True, default=repr).replace("\x7f", "\\u007f")
    return text if not limit or len(text) <= limit else f"{text[: limit - 3]}..."


def listed(names: Iterable[object]) -> str:
    """Names for a message: ``a, b``."""
    return ", ".join(map(str, names))


def _hushed(value: Any, key: str) -> Any:
    if _SECRET.search(key):
        return "(hidden)"
    if isinstance(value, Mapping):
        return {str(name): _hushed(item, str(name)) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_hushed_item(value, at) for at in range(len(value))]
    return _TOKEN.sub("(hidden)", value) if isinstance(value, str) else value


def _hushed_item(items: Any, at: int) -> Any:
    """An item of a list; in a list of flags what is secret stands after its ``--flag``."""
    before = items[at - 1] if at else ""
    after_flag = isinstance(before, str) and before.startswith("-") and "=" not in before
    return _hushed(items[at], before if after_flag else "")
