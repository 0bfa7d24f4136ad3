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
_CONTENT = "vztmpl/"
_SUFFIX = ".tar.zst"
_PUT = 'umask 022; mkdir -p -- "$(dirname -- "$1")"; rm -f -- "$1"; cat > "$1"'
"""PART: standard input into a new file. What a killed builder left copying goes on into one without a name."""
_FORGET = 'for file; do for each in "$file" "$file.part"; do [ ! -e "$each" ] || rm -fv -- "$each"; done; done'
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
    """The volume on `every` with this content under `name`: somebody put it there."""
    for storage in every:
        volume = f"{storage.name}:{_CONTENT}{name}"
        if storage.active and storage.templates and _has(shell, storage.name, volume, sha256):
            return volume
    return None


def upload(shell: Shell, file: Path, sha256: str, run: str) -> str:
    """Stream a template's file to the host, under a name that only this `run` uses; its volume.

    What an earlier try of the run brought whole is taken. Raises BuilderError when there is no room, or it did not
    arrive as it is.
    """
    storage = _template_storage(storages(shell), file.stat().st_size)
    volume = f"{storage}:{_CONTENT}{_name(file.name, run)}"
    if _has(shell, storage, volume, sha256):
        return volume
    path = _path(shell, volume)
    part = f"{path}.part"
    try:
        shell.do("sh", "-ec", _PUT, "sh", part, stdin=file).check(f"is there room on storage {storage}?")
        if not shell.dry and _digest(shell, part) != sha256:
            hint = "try again; if it happens again, look at disks and memory of both machines"
            raise BuilderError("was damaged on its way to the host", where=file, hint=hint)
        shell.do("sh", "-ec", _KEEP, "sh", part, path).check("try again")
    except LostError:
        raise
    except BaseException:
        shell.do("sh", "-ec", _FORGET, "sh", path)
        raise
    return volume


def forget(shell: Shell, name: str, run: str) -> bool:
    """Remove what the uploads of `run` brought of this file, whole or cut short; whether there was anything."""
    fit = [storage.name for storage in storages(shell) if storage.active and storage.templates]
    paths = [_path(shell, f"{storage}:{_CONTENT}{_name(name, run)}") for storage in fit]
    return bool(shell.do("sh", "-ec", _FORGET, "sh", *paths).check().text)


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


def _has(shell: Shell, storage: str, volume: str, sha256: str) -> bool:
    lines = shell.ask("pvesm", "list", storage, "--content", "vztmpl").check().text.splitlines()[1:]
    listed = any(line.split()[:1] == [volume] for line in lines)
    return listed and _digest(shell, _path(shell, volume)) == sha256


def _path(shell: Shell, volume: str) -> str:
    return shell.ask("pvesm", "path", volume).check().text.strip()


def _digest(shell: Shell, path: str) -> str:
    return shell.ask("sha256sum", "-b", "--", path, timeout=None).check().text.lstrip("\\")[:64]


def _name(name: str, run: str) -> str:
    return f"{name.removesuffix(_SUFFIX)}-{run}{_SUFFIX}"
