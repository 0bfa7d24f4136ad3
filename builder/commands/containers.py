"""`builder containers`: look at the file that says which containers there are, check it, and convert it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import click

from builder import console
from builder.commands.common import json_option
from builder.deploy import profile as profiles
from builder.deploy.addresses import mac_for
from builder.deploy.containers import FILES, Finding, Loaded, load, settings
from builder.deploy.containers.convert import convert as converted
from builder.deploy.containers.model import CONTRADICTION, REFUSED, model_of, shown
from builder.deploy.model import Container, jsonable
from builder.deploy.profile import Profile
from builder.deploy.served import served
from builder.errors import BuilderError, UsageError

_file = click.option(
    "--file",
    "file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help=f"Where containers are written down; {' or '.join(FILES)} here when left out.",
)
_recipe = click.option(
    "--recipe",
    metavar="RECIPE",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Where profiles are; the recipe below recipes/ that has one when left out.",
)


@click.group()
def containers() -> None:
    """Look at the file that says which containers there are.

    \b
    Example:
      builder containers show
    """


@containers.command()
@click.argument("ctid", type=int, required=False)
@_file
@_recipe
@json_option
def show(ctid: int | None, file: Path | None, recipe: Path | None, as_json: bool) -> None:
    """Show the containers of the file, or all that is known of container CTID.

    \b
    Examples:
      builder containers show
      builder containers show 950 --file phoenix_lxc_configs.json
    """
    loaded = _with_profiles(_load(file), recipe)
    findings = loaded.findings if ctid is None else loaded.of(ctid)
    if ctid is not None and ctid not in loaded.containers and not findings:
        listed = ", ".join(str(known) for known in loaded.containers) or "none"
        raise UsageError(f"has no container {ctid}", where=loaded.source, hint=f"it has {listed}")
    chosen = [made for made in loaded.containers.values() if ctid in (None, made.ctid)]
    if as_json:
        console.print_json(
            {
                "source": str(loaded.source),
                "containers": [{**jsonable(made), "mac": _mac(made)} for made in chosen],
                "template_ids": list(loaded.template_ids),
                "spare_ids": list(loaded.spare_ids),
                "findings": jsonable(findings),
            }
        )
        return
    if ctid is None:
        columns = ("ctid", "name", "serves", "ip", "gpus", "memory", "cores", "template")
        console.print_table(columns, [_row(loaded, made) for made in chosen], right=("ctid", "memory", "cores"))
    else:
        for made in chosen:
            _print_container(loaded, made)
    _print_findings(findings)


@containers.command()
@_file
@_recipe
@json_option
def check(file: Path | None, recipe: Path | None, as_json: bool) -> None:
    """Say all that is wrong with the file and the profiles that it names or makes, and what is not used of it.

    Also told are cards that are promised beyond what they have. Exits 1 when something was refused or contradicts
    itself, 2 when the file cannot be read.

    \b
    Example:
      builder containers check --file phoenix_lxc_configs.json
    """
    loaded = _with_profiles(_load(file), recipe)
    bad = [found for found in loaded.findings if found.severity in (REFUSED, CONTRADICTION)]
    if as_json:
        console.print_json({"source": str(loaded.source), "findings": jsonable(loaded.findings)})
    else:
        _print_findings(loaded.findings)
        faults = _count(len(bad), "fault") if bad else "nothing wrong"
        click.echo(f"{loaded.source}: {_count(len(loaded.containers), 'container')}, {faults}")
    if bad:
        sys.exit(1)


@containers.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--output", metavar="FILE", type=click.Path(path_type=Path), help="Where to write; stdout when left out.")
@click.option("--force", is_flag=True, help="Write over what is there.")
@json_option
def convert(file: Path | None, output: Path | None, force: bool, as_json: bool) -> None:
    """Write FILE as containers.toml, with all that has no counterpart as comments.

    \b
    Example:
      builder containers convert phoenix_lxc_configs.json --output containers.toml
    """
    loaded = _load(file)
    text = converted(loaded)
    if output is not None:
        try:
            with output.open("w" if force else "x", encoding="utf-8") as written_file:
                written_file.write(text)
        except FileExistsError as error:
            raise BuilderError("is there already", where=output, hint="give --force to write over it") from error
    if as_json:
        console.print_json({"source": str(loaded.source), "output": output and str(output), "text": text})
    elif output is None:
        click.echo(text, nl=False)
    else:
        click.echo(f"{output}: {_count(len(loaded.containers), 'container')} of {loaded.source}")


@containers.command()
@click.option("--markdown", is_flag=True, help="The same as tables for people: docs/containers-keys.md.")
def schema(markdown: bool) -> None:
    """Print the JSON Schema of containers.toml, which editors use.

    \b
    Example:
      builder containers schema > containers.schema.json
    """
    if markdown:
        click.echo(settings.manual(), nl=False)
    else:
        console.print_json(settings.schema())


def _load(file: Path | None) -> Loaded:
    loaded = load(file)
    if loaded.source is None:
        raise UsageError(f"there is neither {' nor '.join(FILES)} here", hint="give --file, or see docs/containers.md")
    return loaded


def _with_profiles(loaded: Loaded, recipe: Path | None) -> Loaded:
    """`loaded` with what is to be said of what its containers serve."""

    def named(name: str) -> Profile:
        return profiles.load(recipe or profiles.find(name), name)

    known = recipe is not None or Path("recipes").is_dir()
    found = served(loaded, named if known else None).findings
    findings = sorted((*loaded.findings, *found), key=lambda finding: finding.ctid or 0)
    return replace(loaded, findings=tuple(findings))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _mac(made: Container) -> str:
    return made.network.mac or mac_for(made.name, made.ctid)


def _row(loaded: Loaded, made: Container) -> Sequence[object]:
    return (
        made.ctid,
        made.name,
        _serves(loaded, made),
        made.network.ip,
        _gpus(made),
        console.human(made.memory_mib << 20),
        made.cores,
        made.template or "",
    )


def _serves(loaded: Loaded, made: Container) -> str:
    if made.profile:
        return made.profile
    return shown(model_of(loaded.entries.get(made.ctid, {})))[1:-1]


def _gpus(made: Container) -> str:
    return "any" if made.gpus is None else ",".join(map(str, made.gpus)) or "none"


def _print_container(loaded: Loaded, made: Container) -> None:
    rows = {key: _text(value) for key, value in settings.values_of(made).items()}
    rows["Gpus"] = _gpus(made)
    if made.network.mac is None:
        rows["Mac"] = f"{_mac(made)} (follows from Name and Ctid)"
    if made.profile is None and (model := _serves(loaded, made)):
        rows["Profile"] = f"of its own, for {model}"
    for key, text in rows.items():
        click.echo(f"{key:>14}: {text}")


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def _print_findings(findings: Sequence[Finding]) -> None:
    for line in _lines(findings):
        click.echo(line)


def _lines(findings: Sequence[Finding]) -> Iterator[str]:
    for found in findings:
        where = "" if found.ctid is None else f"{found.ctid}: "
        yield f"{where}{'' if found.severity == 'told' else f'{found.severity}: '}{found.text}"
