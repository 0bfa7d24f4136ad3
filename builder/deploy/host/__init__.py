"""Where containers live: the protocol in `base`, and `pct` (here or over ssh) and `lxc` behind it."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path

from builder.deploy.channel import Local, Ssh
from builder.deploy.host.base import Capabilities, Host
from builder.deploy.host.pct import Pct
from builder.deploy.host.schema import MAJORS, checker
from builder.deploy.shell import Channel, Shell
from builder.errors import BuilderError, UsageError

_FORMS = "pct, lxc[:FOLDER] or ssh:[USER@]HOST[:PORT]"
_SSH = re.compile(r"ssh:(?:([A-Za-z0-9_][\w.-]*)@)?(\[[0-9A-Fa-f:.%\w]+\]|[A-Za-z0-9_][\w.-]*)(?::(\d{1,5}))?")
_DEV_ENTRIES = (5, 0, 7)
"""The first pve-container with `dev[n]`."""
_WHO = "id -u; dpkg-query -W -f '${Version}\\n' pve-container"


def open_host(where: str, *, dry: bool = False, say: Callable[[str], None] = lambda line: None) -> Host:
    """The host called `where`: ``pct`` (this machine is a Proxmox node), ``lxc`` (this machine, plain
    LXC; ``lxc:FOLDER`` for containers in a folder other than /var/lib/lxc) or
    ``ssh:[USER@]HOST[:PORT]`` (a Proxmox node; the user is root). With `dry` nothing is ever changed. `say` gets what
    is waited for.

    ``$BUILDER_SSH`` is the `ssh` to use with further options, as one shell command line. Raises UsageError for anything
    else, BuilderError when the host cannot be reached or is no Proxmox node of a known version.
    """
    kind, _, folder = where.partition(":")
    if kind == "lxc":
        from builder.deploy.host.lxc import ROOT, Lxc

        return Lxc(Shell(Local(), dry=dry), Path(folder).absolute() if folder else ROOT)
    if where == "pct":
        return open_pct("pct", Local(), dry=dry, say=say)
    found = _SSH.fullmatch(where)
    if found is None or (found[3] and not 0 < int(found[3]) < 65536):
        raise UsageError(f"unknown host {where!a}", hint=f"give {_FORMS}")
    user, name, port = found[1] or "root", found[2].strip("[]"), int(found[3]) if found[3] else None
    program = shlex.split(os.environ.get("BUILDER_SSH", "ssh"))
    own = f"ssh-{user}@{name}" if port in (None, 22) else f"ssh-{user}@{name}-{port}"
    return open_pct(own, Ssh(name, user, port, program), dry=dry, remote=True, say=say)


def open_pct(
    name: str,
    channel: Channel,
    *,
    dry: bool = False,
    remote: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Pct:
    """The Proxmox node behind `channel`. Raises BuilderError as `open_host` does."""
    done = channel.run(("sh", "-c", _WHO), timeout=60)
    uid, _, version = done.text.partition("\n")
    if done.status != 0 or not re.match(r"\d+\.\d+", version):
        hint = f"give --host {_FORMS}"
        raise BuilderError("is no Proxmox VE node: pve-container is not installed", where=name, hint=hint)
    if uid != "0":
        raise BuilderError("commands do not run as root there", where=name, hint="`pct` needs root")
    numbers = tuple(map(int, re.findall(r"\d+", version)))
    major = numbers[0] + 3  # pve-container 5 is that of Proxmox VE 8
    if major < MAJORS[0]:
        hint = "update to Proxmox VE 8 or later"
        raise BuilderError(f"pve-container {version} is too old", where=name, hint=hint)
    capabilities = Capabilities(numbers >= _DEV_ENTRIES, True, remote, f"pve-container {version}")
    return Pct(name, Shell(channel, dry=dry, check=checker(min(major, MAJORS[-1]))), capabilities, say=say)
