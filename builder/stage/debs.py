"""What the kinds of stage that install Debian packages share."""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from builder.errors import BuilderError
from builder.lock import control
from builder.lock.model import Deb, Lock
from builder.recipe.keys import Key, Type
from builder.recipe.model import Recipe, Stage

STATUS = "/var/lib/dpkg/status"
POLICY = "/usr/sbin/policy-rc.d"

ENVIRONMENT = {"HOME": "/run/builder", "PYTHONDONTWRITEBYTECODE": "1"}
"""For every installation: dpkg finds no .dpkg.cfg of the host's user, and what byte-compiles on purpose, with hashes
since SOURCE_DATE_EPOCH is set (py_compile), is not forestalled by what imports and writes time stamps."""

NO_SERVICES = f"""\
if [ ! -e {POLICY} ]; then # let no package start its service
    printf '#!/bin/sh\\nexit 101\\n' >{POLICY}
    chmod 755 {POLICY}
    trap 'rm {POLICY}' EXIT
fi
"""
"""For the shell that installs packages: see invoke-rc.d(8)."""

_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+(=[A-Za-z0-9.+:~-]+)?")

_NAMED = re.compile(r"(?:^|[,|])\s*([^\s,|:(]+)")
"""The packages named in a field of dependencies, all alternatives."""

_LEFTOVERS = (
    "dev/*",
    "etc/*-",
    "etc/ssh/ssh_host_*",
    "usr/sbin/policy-rc.d",
    "var/cache/apt/*",
    "var/cache/apt/archives/*",
    "var/cache/debconf/*-old",
    "var/cache/ldconfig/aux-cache",
    "var/lib/apt/lists/*",
    "var/lib/dbus/machine-id",
    "var/lib/dpkg/*-old",
    "var/lib/systemd/random-seed",
    "var/log/*.log",
    "var/log/apt/*",
)
"""What an installation leaves behind that differs from run to run, or must differ from machine to machine."""
_DOCUMENTATION = ("doc", "doc-base", "info", "lintian", "locale", "man")
_LICENCE = "copyright"


def _wrong_packages(packages: list[str]) -> str | None:
    wrong = [package for package in packages if not _PACKAGE.fullmatch(package)]
    return f'has "{wrong[0]}", which is no NAME or NAME=VERSION of a package' if wrong else None


KEYS = (
    Key(
        "Packages",
        Type.TEXTS,
        "Debian packages to install, as NAME or NAME=VERSION. What they depend on comes too, what they recommend not.",
        check=_wrong_packages,
        mkosi="Content",
    ),
    Key(
        "WithDocs",
        Type.BOOL,
        "Keep man pages, documentation and translations. Licences always stay.",
        default=False,
        mkosi="Content",
    ),
)


def wanted(stage: Stage) -> tuple[str, ...]:
    """The packages that the recipe asks for, in an order that does not depend on the recipe's."""
    return tuple(sorted(set(stage.params["Packages"])))


def locked(stage: Stage, lock: Lock) -> tuple[Deb, ...]:
    """The stage's packages in the lock. Raises BuilderError when it has none for this stage."""
    try:
        return lock.debs[stage.lock_id]
    except KeyError:
        raise BuilderError(
            "the lock has no packages for it", where=f"stage {stage.name}", hint="run `builder lock`"
        ) from None


def params(recipe: Recipe, stage: Stage, debs: tuple[Deb, ...]) -> dict[str, Any]:
    """What decides a layer of packages beside the files: what was asked for, and what must come out."""
    return {
        "Packages": list(wanted(stage)),
        "Locked": {deb.name: f"{deb.version} {deb.architecture}" for deb in debs},
        "WithDocs": stage.params["WithDocs"],
    }


def automatic(params: Mapping[str, Any]) -> list[str]:
    """The packages that came only because others depend on them: apt may remove them once nothing does."""
    asked = {package.partition("=")[0] for package in params["Packages"]}
    return sorted(set(params["Locked"]) - asked)


def needed_early(index: str) -> list[str]:
    """Of the packages in `index`, those that a preinst may count on with what they depend on (Debian Policy 7.2)."""
    packages = [control.fields(paragraph) for paragraph in control.paragraphs(index)]
    named = {name for package in packages for name in _NAMED.findall(package.get("Pre-Depends", ""))}
    return [
        package["Package"]
        for package in packages
        if package.get("Essential") == "yes"
        or not named.isdisjoint((package["Package"], *_NAMED.findall(package.get("Provides", ""))))
    ]


def installed(status: Path | None) -> dict[str, str]:
    """Every package that the dpkg database `status` has as installed, with its version and architecture."""
    found = {}
    for paragraph in control.paragraphs(status.read_text(errors="surrogateescape") if status else ""):
        fields = control.fields(paragraph)
        if fields["Status"].endswith(" ok installed"):
            found[fields["Package"]] = f"{fields['Version']} {fields['Architecture']}"
    return found


def check(expected: Mapping[str, str], found: Mapping[str, str], stage: Stage) -> None:
    """Raise BuilderError naming the packages in which what was `found` differs from what was `expected`."""
    differences = [
        f"{name}: {found.get(name, 'not installed')} instead of {expected.get(name, 'nothing')}"
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    ]
    if differences:
        raise BuilderError(
            f"installed is not what is locked: {', '.join(differences)}",
            where=f"stage {stage.name}",
            hint=f"run `builder lock --upgrade {differences[0].partition(':')[0]}`",
        )


def clean(root: Path, epoch: int, *, with_docs: bool) -> None:
    """Take out of the layer at `root` what no template may hold, and documentation unless `with_docs`.

    Folders stay: scripts of packages expect those of man pages. Passwords get the day of `epoch`.
    """
    for pattern in _LEFTOVERS:
        for path in root.glob(pattern):
            _remove(root, path)
    machine_id = within(root, "etc/machine-id")
    if machine_id.is_file() and not machine_id.is_symlink():
        machine_id.write_bytes(b"")
    date_passwords(root, epoch)
    for folder in () if with_docs else _DOCUMENTATION:
        for path in (root / "usr/share" / folder).glob("**/*"):
            if not path.is_symlink() and path.name != _LICENCE:
                _remove(root, path)


def date_passwords(root: Path, epoch: int) -> None:
    """Say in the layer's /etc/shadow (shadow(5)), where it has one, that passwords were changed on the day of `epoch`.

    shadow-utils take that day from SOURCE_DATE_EPOCH, but not where the machine's clock is behind it.
    """
    shadow = within(root, "etc/shadow")
    if not shadow.is_file() or shadow.is_symlink():
        return
    rows = [row.split(":") for row in shadow.read_text(errors="surrogateescape").splitlines()]
    for row in rows:
        if len(row) > 2 and row[2] not in ("", "0"):
            row[2] = str(epoch // 86400)
    shadow.write_text("".join(f"{':'.join(row)}\n" for row in rows), errors="surrogateescape")


def within(root: Path, name: str | Path) -> Path:
    """The path of `name` (relative) in the layer at `root`.

    Raises BuilderError when a package has put a link on the way there, which may lead out of the layer.
    """
    path = root / name
    if path.parent.resolve() != root.resolve() / Path(name).parent:
        raise BuilderError(f"a package has made /{Path(name).parent} lead elsewhere", where=root)
    return path


def _remove(root: Path, path: Path) -> None:
    """Remove a file or link, but no whiteout."""
    mode = within(root, path.relative_to(root)).lstat().st_mode
    if stat.S_ISREG(mode) or stat.S_ISLNK(mode):
        path.unlink()
