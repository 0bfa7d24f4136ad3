"""From any file of containers to the text of a containers.toml."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from builder.deploy.containers.entry import LEFT
from builder.deploy.containers.model import CONTRADICTION, REFUSED, TOLD, Loaded, identities, model_of, shown
from builder.deploy.containers.settings import written
from builder.deploy.model import Container

_WIDTH = 118


def convert(loaded: Loaded) -> str:
    """The containers of `loaded` as containers.toml, with all that has no counterpart as comments.

    The same `loaded` gives the same text. What was refused, or has an address that another container has already,
    stands there as comments only. The values of unknown keys and of those that sound secret are left out.
    """
    blocks = [_head(loaded)]
    held: dict[tuple[str, str], int] = {}
    for ctid in sorted({*loaded.containers, *loaded.entries, *_blamed(loaded)}):
        container = loaded.containers.get(ctid)
        blocks.append("\n".join(_container(loaded, ctid, container, held)))
    return "\n\n".join(blocks) + "\n"


def _head(loaded: Loaded) -> str:
    name = loaded.source.name if loaded.source else "nothing"
    lines = [f"# Made from {shown(name)[1:-1]} by `builder containers convert`."]
    for found in loaded.of(None):
        lines += _comment(f"{found.severity}: {found.text}" if found.severity != TOLD else found.text)
    for key, ids in (("TemplateIds", loaded.template_ids), ("SpareIds", loaded.spare_ids)):
        if ids:
            lines.append(f"{key} = {_toml([str(ctid) for ctid in ids])}")
    return "\n".join(lines)


def _blamed(loaded: Loaded) -> set[int]:
    return {found.ctid for found in loaded.findings if found.ctid is not None}


def _container(
    loaded: Loaded, ctid: int, container: Container | None, held: dict[tuple[str, str], int]
) -> Iterator[str]:
    if container is None:
        yield f"# {ctid} is left out:"
        for found in loaded.of(ctid, REFUSED):
            yield from _comment(found.text)
        return
    mine = identities(container).items()
    taken = {key: held[key, value] for key, value in mine if (key, value) in held}
    if taken:
        yield from _comment(f"{ctid} is left out: " + ", ".join(f"its {key} is {taken[key]}'s" for key in taken))
    else:
        held.update(dict.fromkeys(((key, value) for key, value in mine), ctid))
    for found in loaded.of(ctid, CONTRADICTION, TOLD):
        yield from _comment(found.text)
    entry = loaded.entries.get(ctid, {})
    yield from _left(entry)
    lines = ["[[Container]]", *(f"{key} = {_toml(value)}" for key, value in written(container).items())]
    if model_of(entry):
        lines += _profile(entry)
    yield from (f"# {line}".rstrip() for line in lines) if taken else lines


def _left(entry: Mapping[str, Any]) -> Iterator[str]:
    firewall = entry.get("firewall")
    values = {key: entry[key] for key in entry if key in LEFT}
    if isinstance(firewall, dict) and firewall.get("rules"):
        values["firewall.rules"] = firewall["rules"]
    for key in sorted(values):
        yield from _comment(f"{key}: {shown(values[key], key)}")


def _profile(entry: Mapping[str, Any]) -> Iterator[str]:
    yield '# Profile = "..." names a profile of the recipe; the keys that said what is served were:'
    for key in entry:
        if key.startswith("vllm_"):
            yield from _comment(f"{shown(key)[1:-1]}: {shown(entry[key], key)}", "#   ")


def _comment(text: str, start: str = "# ") -> Iterator[str]:
    """`text` as comment lines; it breaks at blanks only."""
    line = start
    for word in text.split():
        if len(line) + len(word) > _WIDTH and line.strip("# "):
            yield line.rstrip()
            line = "#     "
        line += f"{word} "
    yield line.rstrip()


def _toml(value: Any) -> str:
    """A value in TOML: booleans, whole numbers, texts and lists of them are as in JSON, but for one letter."""
    text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return text if len(text) < _WIDTH - 20 or not isinstance(value, list) else _lines(value)


def _lines(value: list[Any]) -> str:
    return "[\n" + "".join(f"    {_toml(item)},\n" for item in value) + "]"
