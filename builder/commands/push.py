"""`builder push`: a template to another machine, sending only what changed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from builder import console
from builder import push as pushing
from builder.commands.common import json_option
from builder.commands.template_file import template_file
from builder.errors import UsageError


@click.command()
@click.argument("target", metavar="HOST:PATH")
@click.argument("template", required=False, type=click.Path(path_type=Path))
@json_option
def push(target: str, template: Path | None, as_json: bool) -> None:
    """Bring TEMPLATE, the newest in artifacts/ when left out, with what lies beside it into the folder PATH of HOST.

    Runs rsync over ssh: what an earlier template there holds already is not sent. The name at HOST appears only after
    the sha256 was checked there. Without HOST, PATH is a folder of this machine.

    \b
    Examples:
      builder push root@pve:/var/lib/vz/template/cache
      builder push /mnt/share/templates artifacts/smoke_1_amd64.tar.zst
      RSYNC_RSH='ssh -p 2222' builder push root@pve:/var/lib/vz/template/cache
    """
    chosen = template_file(template) if template else _newest()
    done = pushing.push(chosen, pushing.parse(target), console.progress(as_json))
    if as_json:
        console.print_json({**asdict(done), "seconds": round(done.seconds, 2)})
        return
    if done.fresh:
        share = f"{done.literal / done.size:.2%}"
        state = f"{console.human(done.literal)} of {console.human(done.size)} sent ({share}), {done.seconds:.1f} s"
    else:
        state = "was there"
    click.echo(f"{done.place}  {state}\nsha256:{done.sha256}")


def _newest() -> Path:
    found = sorted(Path("artifacts").glob("*.tar.zst"), key=lambda path: path.stat().st_mtime_ns)
    if not found:
        raise UsageError("no template in artifacts/", hint="give one, or run `builder template RECIPE`")
    return found[-1]
