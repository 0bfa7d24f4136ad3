"""Files into a container: one tar stream through the host's own way in, looked at there before they take effect."""

from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Sequence
from hashlib import sha256

from builder.deploy.host.base import Host
from builder.deploy.model import File
from builder.errors import BuilderError

_NEW = ".builder-new"
_LOOK = 'for f; do sha256sum -b < "$f"; stat -c "%a %U %G" "$f"; done'
_MOVE = 'for f; do mv -fT "$f" "${f%' + _NEW + '}"; done'


def put(host: Host, ctid: int, files: Sequence[File]) -> None:
    """Write `files` into a running container: all of them, or none takes effect.

    Each gets its owner and group by name as the container knows them, and missing folders above it are made. tar opens
    a file with no more rights than its mode from the first moment. Raises BuilderError naming one that did not arrive
    as it is; its content is never shown.
    """
    if not files:
        return
    shell, names = host.shell, [file.path + _NEW for file in files]
    unpack = host.inside(ctid, ("tar", "-x", "-p", "-f", "-", "-C", "/"))
    shell.do(*unpack, stdin=_archive(files), note=f"tar of {', '.join(file.path for file in files)}").check()
    wrong = [] if shell.dry else _wrong(host, ctid, files, names)
    if wrong:
        shell.do(*host.inside(ctid, ("rm", "-f", *names)))
        raise BuilderError("; ".join(wrong), where=f"container {ctid}")
    shell.do(*host.inside(ctid, ("sh", "-ec", _MOVE, "sh", *names))).check()


def _archive(files: Sequence[File]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for file in files:
            member = tarfile.TarInfo(file.path.lstrip("/") + _NEW)
            member.size, member.mode, member.mtime = len(file.content), file.mode, int(time.time())
            member.uname, member.gname = file.owner, file.group
            archive.addfile(member, io.BytesIO(file.content))
    return buffer.getvalue()


def _wrong(host: Host, ctid: int, files: Sequence[File], names: Sequence[str]) -> list[str]:
    """What of `files` is not in the container as it should be."""
    lines = host.shell.ask(*host.inside(ctid, ("sh", "-ec", _LOOK, "sh", *names))).check().text.splitlines()
    wrong: list[str] = []
    for file, digest, found in zip(files, lines[::2], lines[1::2], strict=True):
        wanted = f"{file.mode:o} {file.owner} {file.group}"
        if digest.split()[0] != sha256(file.content).hexdigest():
            wrong.append(f"{file.path} did not arrive as it is")
        elif found != wanted:
            wrong.append(f"{file.path} has mode, owner and group {found!a} instead of {wanted!a}")
    return wrong
