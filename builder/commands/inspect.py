"""`builder inspect`: what is inside libraries, folder trees and templates."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from builder import console
from builder.commands.common import json_option
from builder.errors import UsageError
from builder.gpucode import (
    Container,
    Kind,
    Library,
    Target,
    Unit,
    Verdict,
    architectures,
    capability,
    scan,
    units,
    verdicts,
)
from builder.store import Store, default_root


@click.command()
@click.argument("path", type=click.Path(path_type=Path, exists=True), metavar="PATH|TEMPLATE")
@click.option("--gpu-code", is_flag=True, help="Machine code and PTX in the libraries of PATH.")
@click.option("--target", metavar="X.Y", help="Judge for a card of this compute capability, such as 12.0.")
@click.option("--ptx-isa", metavar="X.Y", help="The newest PTX that the card's driver compiles; any when left out.")
@click.option("--units", "by_unit", is_flag=True, help="Each translation unit, with what the target's driver takes.")
@json_option
def inspect(path: Path, gpu_code: bool, target: str | None, ptx_isa: str | None, by_unit: bool, as_json: bool) -> int:
    """Look into PATH: a library, a folder, a template or another archive. Exit status 1 when some could not be read.

    \b
    Examples:
      builder inspect --gpu-code artifacts/vllm-blackwell-pypi_0.10.2-1_amd64.tar.zst --target 12.0
      builder inspect --gpu-code libtorch_cuda.so --target 12.0 --units
    """
    if not gpu_code:
        raise UsageError("nothing to look for", hint="add --gpu-code")
    card = _target(target, ptx_isa, by_unit)
    libraries = scan(path, Store(default_root()).scratch, progress=console.progress(as_json))
    if as_json:
        total = [container for library in libraries for container in library.containers]
        told = [_library(library, card, by_unit) for library in libraries]
        console.print_json({"target": target, "libraries": told, "architectures": _architectures(total)})
    elif not libraries:
        click.echo(f"{path}: no GPU code")
    elif card and by_unit:
        _print_units(libraries, card)
    else:
        _print(libraries, card)
    return 1 if any(library.problem for library in libraries) else 0


def _target(text: str | None, isa: str | None, by_unit: bool) -> Target | None:
    if text is None:
        if by_unit or isa:
            raise UsageError("--units and --ptx-isa are about a target", hint="add --target, such as --target 12.0")
        return None
    found = re.fullmatch(r"(\d{1,2})\.(\d)", isa or "0.0", re.ASCII)
    if found is None:
        raise UsageError(f"--ptx-isa: {isa!r} is no version of PTX", hint="write it as in 8.7")
    return Target(capability(text), (int(found[1]), int(found[2])) if isa else None)


def _print(libraries: Sequence[Library], card: Target | None) -> None:
    shown = [verdict for verdict in Verdict if card and (card.isa or verdict is not Verdict.TOO_NEW)]
    last = [verdict.value for verdict in shown] or ["for"]
    rows = [_row(library, card, shown) for library in libraries]
    console.print_table(("library", "units", "GPU code", *last), rows, right=("units", "GPU code", *last[: len(shown)]))
    for library in libraries:
        if library.problem:
            click.echo(f"{_shown(library)} is not readable: {library.problem}")
    click.echo()
    total = [container for library in libraries for container in library.containers]
    sums = [(row.name, row.count, console.human(row.size)) for row in architectures(total)]
    console.print_table(("architecture", "entries", "GPU code"), sums, right=("entries", "GPU code"))


def _row(library: Library, card: Target | None, shown: Sequence[Verdict]) -> tuple[object, ...]:
    if library.problem:
        return (_shown(library), *["?"] * (2 + max(len(shown), 1)))
    size = console.human(sum(container.size for container in library.containers))
    if card:
        counts = verdicts(units(library.containers, card))
        last = [str(counts[verdict] or "") for verdict in shown]
    else:
        last = [" ".join(row.name for row in architectures(library.containers))]
    return (_shown(library), len(library.containers), size, *last)


def _print_units(libraries: Iterable[Library], card: Target) -> None:
    rows = []
    for library in libraries:
        if library.problem:
            rows.append((_shown(library), "?", "not readable", library.problem, "", ""))
        for unit in units(library.containers, card):
            taken = unit.choice.entry
            cells = (taken.name, console.human(taken.size)) if taken else ("", "")
            held = " ".join(entry.name for entry in unit.container.entries)
            rows.append((_shown(library), f"{unit.container.offset:#x}", unit.choice.verdict.value, *cells, held))
    heads = ("library", "unit at", "runs", "takes", "size", "of")
    console.print_table(heads, rows, right=("unit at", "size"))


def _shown(library: Library) -> str:
    """The library's path, which an archive may have filled with anything."""
    return "".join(letter if letter.isprintable() else "?" for letter in library.path)


def _library(library: Library, card: Target | None, by_unit: bool) -> dict[str, Any]:
    told: dict[str, Any] = {"path": library.path, "size": library.size, "problem": library.problem or None}
    told |= {"units": len(library.containers), "architectures": _architectures(library.containers)}
    if card:
        found = units(library.containers, card)
        told["runs"] = {verdict.value: count for verdict, count in verdicts(found).items()}
        if by_unit:
            told["by_unit"] = [_unit(unit) for unit in found]
    return told


def _architectures(containers: Sequence[Container]) -> list[dict[str, Any]]:
    return [{"name": row.name, "entries": row.count, "size": row.size} for row in architectures(containers)]


def _unit(unit: Unit) -> dict[str, Any]:
    taken = unit.choice.entry
    return {
        "section": unit.container.section,
        "offset": unit.container.offset,
        "runs": unit.choice.verdict.value,
        "takes": taken.name if taken else None,
        "entries": [
            {
                "name": entry.name,
                "size": entry.size,
                "unpacked": entry.unpacked,
                "isa": f"{entry.version[0]}.{entry.version[1]}" if entry.kind is Kind.PTX else None,
            }
            for entry in unit.container.entries
        ],
    }
