"""`builder verify`: a template against what is told about it, a deployment against what it should do."""

from __future__ import annotations

from pathlib import Path

import click

from builder import console, pack
from builder.commands.common import json_option
from builder.commands.compare import shown
from builder.commands.template_file import template_file


@click.command()
@click.argument("what", metavar="TEMPLATE|CTID")
@click.option(
    "--host",
    "where",
    default="pct",
    show_default=True,
    metavar="HOST",
    help="Of a CTID; pct: this Proxmox machine; ssh:[USER@]HOST[:PORT]: that one; lxc: plain LXC here.",
)
@json_option
def verify(what: str, where: str, as_json: bool) -> int:
    """Read TEMPLATE and compare every file in it with its manifest, byte by byte; nothing is unpacked. TEMPLATE itself
    is compared with SHA256SUMS, the manifest and the bill of materials.

    With a number, look at that deployment while it runs: versions, driver, CUDA, a computation on its cards by the
    service's own user, models, limits, caches, an answer, and a short load. Of an adopted server, which the builder did
    not make, only models, an answer and the load, by HTTP.

    Exit status 1 when something differs or fails.

    \b
    Examples:
      builder verify artifacts/smoke_1_amd64.tar.zst
      builder verify 921 --host ssh:root@pve
    """
    if what.isdecimal():
        return _deployment(what, where, as_json)
    return _template(template_file(Path(what), "give a template's file, or a container's id"), as_json)


def _template(template: Path, as_json: bool) -> int:
    checked = pack.verify(template, pack.parts(template), console.progress(as_json))
    rows = [(name or template.name, what) for name, what in checked.differences]
    if as_json:
        told = [{"name": name, "what": what} for name, what in rows]
        console.print_json({"sha256": checked.sha256, "files": checked.files, "differences": told})
    else:
        for name, what in rows:
            click.echo(f"{shown(name)} {what}")
        state = f"{len(rows)} differences; remove it and build it again" if rows else "as its manifest says"
        click.echo(f"{template}  {checked.files:,} files: {state}\nsha256:{checked.sha256}")
    return 1 if rows else 0


def _deployment(ctid: str, where: str, as_json: bool) -> int:
    from builder.deploy import adopted
    from builder.deploy import verify as running
    from builder.deploy.deployments import find_running, look
    from builder.deploy.host import open_host
    from builder.deploy.model import jsonable

    host = open_host(where)
    foreign = adopted.find(host, look(host), ctid)
    if foreign is not None:
        name = foreign.name
        server = adopted.server(host, foreign, host.guest(foreign.ctid))
        rows = running.verify_adopted(host, server, console.progress(as_json))
    else:
        found = find_running(host, ctid)
        name = found.mark.name
        rows = running.verify(host, found, console.progress(as_json))
    if as_json:
        console.print_json({"ctid": int(ctid), "name": name, "adopted": foreign is not None, "rows": jsonable(rows)})
    else:
        console.print_table(("", "", "evidence"), [(row.name, row.state, row.evidence) for row in rows])
    return 1 if any(row.state == running.FAILED for row in rows) else 0
