"""`builder status`: the deployments of a host, and who holds its cards."""

from __future__ import annotations

import click

from builder import console
from builder.commands.common import json_option
from builder.commands.deploy import host_option
from builder.deploy.host import open_host
from builder.deploy.model import jsonable
from builder.deploy.status import Overview, Status, overview
from builder.deploy.usage import Usage


@click.command()
@click.argument("which", metavar="[CTID|NAME]...", nargs=-1)
@host_option
@json_option
def status(which: tuple[str, ...], where: str, as_json: bool) -> int:
    """Show deployments: template, profile, health, what was changed since, and the use of the host's cards.

    Of adopted servers, which the builder did not make, only health and cards.

    Exit status 1 when one that runs is not healthy.

    \b
    Examples:
      builder status
      builder status 921 --host ssh:root@pve --json
    """
    host = open_host(where)
    seen = overview(host, which)
    if as_json:
        console.print_json({"host": host.name, **jsonable(seen)})
    else:
        _show(seen)
    return 1 if any(row.health.state == "failed" for row in seen.deployments) else 0


def _show(seen: Overview) -> None:
    if not seen.deployments:
        click.echo("no deployments")
    else:
        columns = ("ctid", "name", "state", "profile", "cards", "health", "template", "drift")
        console.print_table(columns, [_row(row) for row in seen.deployments])
    for row in seen.deployments:
        if row.successor is not None:
            click.echo(f"{row.ctid} was replaced: {row.successor} serves {row.name} now")
    if seen.cards:
        click.echo()
        heads = ("card", "model", "memory", "busy", "held by")
        console.print_table(heads, [_card(row) for row in seen.cards])
    if seen.unchecked:
        click.echo(f"use of the cards: not checked: {seen.unchecked}")


def _row(row: Status) -> tuple[str, ...]:
    template = f"{row.recipe} {row.digest[:12]}" + (f" (newer: {row.newer})" if row.newer else "")
    template = "adopted" if row.adopted else template
    changed = f"not checked: {row.unchecked}" if row.unchecked else "; ".join(row.drift) or "none"
    cards = ", ".join(map(str, row.gpus)) or "none"
    return str(row.ctid), row.name, row.state, row.profile, cards, _health(row), template, changed


def _health(row: Status) -> str:
    return f"{row.health.state}: {row.health.said}"


def _card(row: Usage) -> tuple[str, ...]:
    card = row.card
    memory = f"{card.used_mib:,} of {card.memory_mib:,} MiB" if card.memory_mib else "not checked"
    holders = []
    for holder in row.holders:
        who = holder.name if holder.ctid is None else f"{holder.ctid} {holder.name}"
        whose = "" if holder.ours or holder.ctid is None else ", foreign"
        seen = "not seen" if holder.used_mib is None else f"{holder.used_mib:,} MiB"
        holders.append(f"{who} ({seen}{whose})")
    busy = "not checked" if row.busy is None else f"{row.busy} %"
    return str(card.index), card.name, memory, busy, "; ".join(holders) or "nobody"
