"""`builder adopt`: remember a server that the builder did not make, to look at it and to measure against it."""

from __future__ import annotations

from pathlib import Path

import click

from builder import console
from builder.commands.common import json_option
from builder.commands.deploy import host_option
from builder.deploy import adopted
from builder.deploy.host import open_host
from builder.deploy.model import jsonable


@click.command()
@click.argument("ctid", type=click.IntRange(100, 999999999))
@click.option("--port", type=click.IntRange(1, 65535), default=adopted.PORT, show_default=True, help="Its port.")
@click.option("--address", help="Its address; that in the container's configuration when left out.")
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File with the API key that it wants; a copy is kept on this machine.",
)
@click.option("--forget", is_flag=True, help="Forget it and its key.")
@host_option
@json_option
def adopt(
    ctid: int, port: int, address: str | None, api_key_file: Path | None, forget: bool, where: str, as_json: bool
) -> None:
    """Remember the server in a container that the builder did not make, for status, verify and bench --against.

    It is asked from the host, and must answer. Nothing in the container or of it is changed, now or later.

    \b
    Examples:
      builder adopt 950 --api-key-file awq.key
      builder adopt 951 --address 10.0.0.151 --port 8001 --host ssh:root@pve
      builder adopt 950 --forget
    """
    host = open_host(where)
    if forget:
        adopted.forget(host, ctid)
        if as_json:
            console.print_json({"forgotten": ctid})
        else:
            click.echo(f"container {ctid} is forgotten; nothing of it was changed")
        return
    key = adopted.key_of(api_key_file) if api_key_file else None
    found, models = adopted.adopt(host, ctid, port=port, address=address, key=key)
    origin = host.shell.channel.name
    if as_json:
        console.print_json({**jsonable(found), "models": list(models), "asked_from": origin})
    else:
        click.echo(f"{found.name}: container {ctid} serves {', '.join(models)} at {found.base}, asked from {origin}")
