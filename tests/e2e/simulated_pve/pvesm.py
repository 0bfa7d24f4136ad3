"""`pvesm`, and the one storage: a folder, so that there are no linked clones.

A volume is a folder of files with a name that says `raw`, where Proxmox makes an image: it is as large as it needs.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from .state import CONFIGS, RefusedError, not_simulated

NAME = "local"
PLACE = Path("/var/lib/vz")
_CACHE = PLACE / "template/cache"
_IMAGES = PLACE / "images"
_ARCHIVE = re.compile(r"[^/]+\.tar\.(?:gz|xz|zst|bz2)")


def check(storage: str) -> None:
    if storage != NAME:
        raise RefusedError(f"storage '{storage}' does not exist")


def path_of(volume: str) -> Path:
    """Where a volume lies. Raises RefusedError for another storage."""
    storage, _, name = volume.partition(":")
    check(storage)
    return _CACHE / name.removeprefix("vztmpl/") if name.startswith("vztmpl/") else _IMAGES / name


def allocate(ctid: int, owner: int) -> str:
    """A new empty volume of a container, of the root in it."""
    folder = _IMAGES / str(ctid)
    folder.mkdir(parents=True, exist_ok=True)
    number = next(n for n in range(99) if not any(folder.glob(f"*-{ctid}-disk-{n}.raw")))
    path = folder / f"vm-{ctid}-disk-{number}.raw"
    path.mkdir(mode=0o755)
    os.chown(path, owner, owner)
    return f"{NAME}:{ctid}/{path.name}"


def to_base(volume: str) -> str:
    """Rename a container's volume as that of a template."""
    path = path_of(volume)
    path.rename(path.with_name(path.name.replace("vm-", "base-", 1)))
    return volume.replace("/vm-", "/base-", 1)


def remove(volume: str) -> None:
    """Remove a volume, which may still be written to: a real one is a file, and that may be removed at any time."""
    path = path_of(volume)
    if path.is_dir():
        while path.exists():
            try:
                shutil.rmtree(path)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
                    raise
        if not any(path.parent.iterdir()):
            path.parent.rmdir()
    else:
        path.unlink()


def volumes(ctid: str = "*") -> list[str]:
    return sorted(f"{NAME}:{path.parent.name}/{path.name}" for path in _IMAGES.glob(f"{ctid}/*-disk-*"))


def facts() -> dict[str, object]:
    """As `/nodes/NODE/storage` has it; its room is made up, whatever this machine has."""
    sizes = {"avail": 40 << 30, "total": 64 << 30, "used": 24 << 30, "used_fraction": 0.375}
    content = "backup,snippets,images,vztmpl,iso,rootdir"
    return {"storage": NAME, "type": "dir", "active": 1, "enabled": 1, "shared": 0, "content": content, **sizes}


def main(argv: Sequence[str]) -> int:
    """Look at volumes and remove them."""
    match list(argv):
        case ["list", storage, *options]:
            check(storage)
            _list(dict(zip(options[::2], options[1::2], strict=True)))
        case ["path", volume]:
            print(path_of(volume))
        case ["free", volume]:
            if not path_of(volume).exists():
                raise RefusedError(f"volume '{volume}' does not exist")
            remove(volume)
            print(f"Removed volume '{volume}'")
        case _:
            raise not_simulated(f"pvesm {' '.join(argv)}")
    return 0


def _list(options: dict[str, str]) -> None:
    rows = []
    if options.get("--content") in (None, "vztmpl") and "--vmid" not in options:
        names = sorted(path.name for path in _CACHE.iterdir() if _ARCHIVE.fullmatch(path.name))
        rows += [(f"{NAME}:vztmpl/{name}", "tzst", "vztmpl", (_CACHE / name).stat().st_size, "") for name in names]
    if "--content" not in options:
        for volume in volumes(options.get("--vmid", "*")):
            ctid = volume.partition(":")[2].partition("/")[0]
            rows.append((volume, "raw", "rootdir" if (CONFIGS / f"{ctid}.conf").exists() else "images", 0, ctid))
    print(f"{'Volid':40} Format  Type {'Size':>16} VMID")
    for volume, form, kind, size, ctid in rows:
        print(f"{volume:40} {form:7} {kind:7} {size:13} {ctid}")
