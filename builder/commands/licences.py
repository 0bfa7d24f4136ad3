"""`builder licences`: what of a template may be passed on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from builder import console, pack
from builder.commands.common import json_option
from builder.commands.template_file import template_file
from builder.pack import May, Part

_WHOLE = {
    May.OWN_USE: "for one's own use only",
    May.UNKNOWN: "not known: the parts above say too little",
    May.APPLICATION: "only inside an application that has functionality of its own",
    May.UNMODIFIED: "unmodified, with the licences that are in it",
    May.YES: "yes, under the licences of its parts",
}
_STYLE = {May.OWN_USE: "red", May.UNKNOWN: "cyan", May.APPLICATION: "yellow", May.UNMODIFIED: "yellow", May.YES: None}

_NAMED = 4


@click.command()
@click.argument("template", type=click.Path(path_type=Path))
@json_option
def licences(template: Path, as_json: bool) -> None:
    """Show what of TEMPLATE may be passed on, by deb, wheel, URL, stage and program, and why.

    Read from the manifest and the bill of materials beside it. Facts with their sources, no legal advice.

    \b
    Example:
      builder licences artifacts/vllm-blackwell-pypi_0.10.2-1_amd64.tar.zst
    """
    parts = pack.read_rights(template_file(template))
    if as_json:
        console.print_json(_result(template, parts))
    else:
        _print(template, parts)


def _print(template: Path, parts: Sequence[Part]) -> None:
    free = Counter((part.kind, part.says) for part in parts if _is_counted(part))
    rows = [_row(part) for part in _strict_first(parts) if not _is_counted(part)]
    rows += [(kind, f"{count} of them", May.YES.value, says) for (kind, says), count in free.items()]
    console.print_table(("kind", "part", "may be passed on", "by"), rows)
    click.echo()
    for grant, licence, says, source in dict.fromkeys(
        (part.grant, part.licence, part.says, part.source) for part in _strict_first(parts) if part.grant
    ):
        click.echo(f"{grant}, {licence}: {says}\n    known from: {source}")
    whole = pack.strictest(parts)
    click.echo(f"\n{template.name} may be passed on: {click.style(_WHOLE[whole], fg=_STYLE[whole])}")
    if whole is May.OWN_USE:
        names = [_shown(part.name) for part in _strict_first(parts) if part.may is whole]
        more = f" and {len(names) - _NAMED} more" if names[_NAMED:] else ""
        click.echo(f"It holds {', '.join(names[:_NAMED])}{more}")
    click.echo("The recipe and its lock name files by URL and sha256 and hold none of them: they may be shared")
    click.echo(f"Licences as read on {pack.read_on()}; no legal advice")


def _is_counted(part: Part) -> bool:
    return part.may is May.YES and not part.grant


def _strict_first(parts: Iterable[Part]) -> list[Part]:
    order = list(May)
    return sorted(parts, key=lambda part: (order.index(part.may), part.kind != "file"))


def _row(part: Part) -> tuple[str, str, str, str]:
    return part.kind, _shown(f"{part.name} {part.version}".rstrip()), part.may.value, part.grant or part.says


def _shown(text: str) -> str:
    """Text that comes from inside a template, harmless to a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _result(template: Path, parts: Sequence[Part]) -> dict[str, Any]:
    return {
        "template": template.name,
        "may_be_passed_on": pack.strictest(parts).value,
        "read_on": pack.read_on(),
        "parts": [{**asdict(part), "may": part.may.value} for part in parts],
    }
