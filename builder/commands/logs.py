"""`builder logs`: what a deployment's service writes."""

from __future__ import annotations

import json
import os
import sys

import click

from builder.commands.common import json_option
from builder.commands.deploy import host_option
from builder.deploy.deployments import find_running
from builder.deploy.host import open_host
from builder.deploy.logs import Line, follow
from builder.deploy.profile import secrets


@click.command()
@click.argument("which", metavar="CTID|NAME")
@host_option
@click.option("-f", "--follow", "endless", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@click.option("-n", "--lines", type=click.IntRange(0), default=100, show_default=True, help="How many of the last.")
@click.option("--since", help="All lines since then: '10 min ago', '2026-11-24 17:00', today.")
@json_option
def logs(which: str, where: str, endless: bool, lines: int, since: str | None, as_json: bool) -> int:
    """Show the journal of a deployment's service, the times in this machine's zone; with --json one object a line.

    \b
    Examples:
      builder logs 921 -f
      builder logs 950 --since '1 hour ago' --host ssh:root@pve
    """
    host = open_host(where)
    found = find_running(host, which)

    known = secrets.to_hide(secrets.kept(host.name, found.mark.name), os.environ)

    def show(line: Line) -> None:
        text = known.hide(line.text)
        if as_json:
            click.echo(json.dumps({"time": line.time.isoformat(), "line": text}))
        else:
            click.echo(f"{line.time.astimezone():%Y-%m-%d %H:%M:%S} {text}")
        sys.stdout.flush()

    try:
        follow(host, found.guest.ctid, show, lines=None if since else lines, since=since, endless=endless)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `builder logs 921 | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
