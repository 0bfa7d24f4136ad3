"""Storages of a Proxmox node: templates' files on them, and what of a container's volumes lies there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from builder.deploy.host import pve
from builder.deploy.host.base import Storage
from builder.deploy.model import Container
from builder.deploy.shell import LostError, Shell
from builder.errors import BuilderError

GIB = 1 << 30
_COPYING = 600
"""Seconds to wait for a copy that a killed builder left running."""
_CONTENT = "vztmpl/"
_SUFFIX = ".tar.zst"
_PUT = (
    'umask 022; mkdir -p -- "$(dirname -- "$1")"; exec >> "$1"; '
    'flock -nE 9 1 || [ $? -ne 9 ] || { echo "another upload of this file is under way" >&2; exit 1; }; '
    'truncate -s 0 -- "$1"; cat'
)
"""PART: standard input into it. A file system without locks, which some shares are, is no reason to refuse."""
_FORGET_PART = 'wait=$1; shift; for part; do [ ! -e "$part" ] || flock -w "$wait" "$part" rm -f -- "$part"; done'
_KEEP = 'mv -n -- "$1" "$2"; [ ! -e "$1" ]'


def storages(shell: Shell) -> tuple[Storage, ...]:
    """All storages of the node, by name: Proxmox lists them in no order."""
    return tuple(
        Storage(
            name=entry["storage"],
            kind=entry["type"],
            active=bool(entry.get("active")) and bool(entry.get("enabled", 1)),
            free=int(entry.get("avail", 0)),
            containers="rootdir" in entry["content"].split(","),
            templates="vztmpl" in entry["content"].split(","),
        )
        for entry in sorted(pve.get(shell, f"{pve.NODE}/storage"), key=lambda entry: str(entry["storage"]))
    )


def root_storage(every: Sequence[Storage], container: Container) -> Storage:
    """Where of `every` the root disk goes. Raises BuilderError when the one asked for, or any, cannot have it."""
    fit = [storage for storage in every if storage.containers and storage.active]
    if container.storage is None:
        if not fit:
            raise BuilderError("no storage of the host takes containers", hint="allow `rootdir` on one: `pvesm set`")
        return max(fit, key=lambda storage: storage.free)
    named = next((storage for storage in every if storage.name == container.storage), None)
    if named is None or named not in fit:
        what = "is not there" if named is None else "is not active" if not named.active else "takes no containers"
        hint = f"take one of {', '.join(storage.name for storage in fit) or 'those of another host'}"
        raise BuilderError(what, where=f"storage {container.storage}", hint=hint)
    return named


def leftovers(shell: Shell, every: Sequence[Storage], ctid: int) -> tuple[str, ...]:
    """Volumes on `every` that carry the id of a container that is not there any more."""
    found: list[str] = []
    for storage in every:
        if storage.active and storage.containers:
            lines = shell.ask("pvesm", "list", storage.name, "--vmid", str(ctid)).check().text.splitlines()[1:]
            rows = [line.split() for line in lines]
            found += [row[0] for row in rows if len(row) > 2 and row[2] in ("images", "rootdir")]
    return tuple(found)


def find(shell: Shell, every: Sequence[Storage], name: str, sha256: str) -> str | None:
    """The volume on `every` with this content under `name`, or under the name it gets when that is taken."""
    for storage in every:
        if storage.active and storage.templates:
            for volume in _templates(shell, storage.name):
                own = volume.partition(_CONTENT)[2] in (name, _other_name(name, sha256))
                if own and _digest(shell, _path(shell, volume)) == sha256:
                    return volume
    return None


def upload(shell: Shell, file: Path, sha256: str) -> str:
    """Stream a template's file to the host under a name of its own until its sha256 was read there; its volume.

    Raises BuilderError when there is no room, or it did not arrive as it is.
    """
    every = storages(shell)
    if (found := find(shell, every, file.name, sha256)) is not None:
        return found
    storage = _template_storage(every, file.stat().st_size)
    volume = f"{storage}:{_CONTENT}{file.name}"
    if volume in _templates(shell, storage):
        volume = f"{storage}:{_CONTENT}{_other_name(file.name, sha256)}"
    path = _path(shell, volume)
    part = _part(path, sha256)
    try:
        shell.do("sh", "-ec", _PUT, "sh", part, stdin=file).check(f"is there room on storage {storage}?")
        if not shell.dry and _digest(shell, part) != sha256:
            hint = "try again; if it happens again, look at disks and memory of both machines"
            raise BuilderError("was damaged on its way to the host", where=file, hint=hint)
        shell.do("sh", "-ec", _KEEP, "sh", part, path).check("somebody made this file just now: try again")
    except LostError:
        raise
    except BaseException:
        shell.do("sh", "-c", _FORGET_PART, "sh", "0", part)
        raise
    return volume


def forget_part(shell: Shell, name: str, sha256: str) -> None:
    """Remove what an upload of this file that was cut short left; what still copies is waited for."""
    fit = [storage.name for storage in storages(shell) if storage.active and storage.templates]
    names = (name, _other_name(name, sha256))
    parts = [_part(_path(shell, f"{storage}:{_CONTENT}{each}"), sha256) for storage in fit for each in names]
    shell.do("sh", "-ec", _FORGET_PART, "sh", str(_COPYING), *parts).check()


def _part(path: str, sha256: str) -> str:
    """The name of a template's file until all of it is there."""
    return f"{path}.{sha256[:12]}.part"


def _template_storage(every: Sequence[Storage], size: int) -> str:
    """The storage for a template's file: `local` where it can be, else the one with most room."""
    fit = [storage for storage in every if storage.templates and storage.active]
    if not fit:
        raise BuilderError("no storage of the host takes templates", hint="allow `vztmpl` on one: `pvesm set`")
    roomy = [storage for storage in fit if storage.free > size]
    if not roomy:
        listed = ", ".join(f"{storage.name} has {storage.free / GIB:.1f} GiB" for storage in fit)
        raise BuilderError(f"a template of {size / GIB:.1f} GiB has no room: {listed}", hint="remove old templates")
    return max(roomy, key=lambda storage: (storage.name == "local", storage.free)).name


def _templates(shell: Shell, storage: str) -> tuple[str, ...]:
    lines = shell.ask("pvesm", "list", storage, "--content", "vztmpl").check().text.splitlines()[1:]
    return tuple(line.split()[0] for line in lines if line.strip())


def _path(shell: Shell, volume: str) -> str:
    return shell.ask("pvesm", "path", volume).check().text.strip()


def _digest(shell: Shell, path: str) -> str:
    return shell.ask("sha256sum", "-b", "--", path, timeout=None).check().text.lstrip("\\")[:64]


def _other_name(name: str, sha256: str) -> str:
    return f"{name.removesuffix(_SUFFIX)}-{sha256[:12]}{_SUFFIX}"
