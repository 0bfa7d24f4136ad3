"""The variations: what of the surroundings each one changes, and what it needs for that."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from builder.errors import BuilderError
from builder.rebuild.model import CannotVaryError, Way
from builder.sandbox.userns import subordinate

_HOST = "rebuild.example.org"
_PLACE = "a place with blanks/\N{LATIN SMALL LETTER U WITH DIAERESIS}ber/" + "long" * 20
_YEARS = 10
_DISTURBING = {
    "CFLAGS": "-O0 -g",
    "DEB_BUILD_OPTIONS": "nocheck parallel=7",
    "HOME": "/nonexistent",
    "MAKEFLAGS": "-j7",
    "PIP_INDEX_URL": "http://127.0.0.1:9/",
    "POSIXLY_CORRECT": "1",
    "PYTHONHASHSEED": "7",
    "PYTHONOPTIMIZE": "1",
    "SOURCE_DATE_EPOCH": "86400",
    "TAR_OPTIONS": "--owner=nobody --mtime=@0",
    "UV_INDEX_URL": "http://127.0.0.1:9/",
    "ZSTD_CLEVEL": "19",
}
"""Settings of other tools that a build must not listen to."""


@dataclass(frozen=True)
class Variation:
    """One change of the surroundings: `vary` makes it and says it, or raises CannotVaryError."""

    help: str
    vary: Callable[[Way], tuple[Way, str]]


def _again(way: Way) -> tuple[Way, str]:
    return way, "nothing varied"


def _path(way: Way) -> tuple[Way, str]:
    return replace(way, folder=_PLACE), "project, store and output in a long path with blanks"


def _user(way: Way) -> tuple[Way, str]:
    if Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]:
        raise CannotVaryError("only root can become another user")
    for user in pwd.getpwall():
        if user.pw_uid == 0:
            continue
        try:
            subordinate(Path("/etc/subuid"), user.pw_uid)
            subordinate(Path("/etc/subgid"), user.pw_uid)
        except BuilderError:
            continue
        names = {"HOME": user.pw_dir, "USER": user.pw_name, "LOGNAME": user.pw_name}
        return _with_env(replace(way, user=user.pw_name), names), f"by user {user.pw_name}, in a user namespace"
    raise CannotVaryError("no user but root has 65535 subordinate ids (usermod --add-subuids, --add-subgids)")


def _clock(years: int) -> Callable[[Way], tuple[Way, str]]:
    def vary(way: Way) -> tuple[Way, str]:
        library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
        if library is None:
            raise CannotVaryError("libfaketime is not installed (apt install libfaketime)")
        if way.engine == "docker":
            raise CannotVaryError("the clock of a container is the machine's")
        faked = {"LD_PRELOAD": str(library), "FAKETIME": f"{years * 365 * 86400:+}"}
        return _with_env(
            way, faked
        ), f"the clock {abs(years)} years {'ahead' if years > 0 else 'behind'}, by libfaketime"

    return vary


def _zone(way: Way) -> tuple[Way, str]:
    return _with_env(way, {"TZ": "Asia/Kathmandu"}), "TZ=Asia/Kathmandu"


def _locale(way: Way) -> tuple[Way, str]:
    said = subprocess.run(["locale", "-a"], capture_output=True, text=True, check=False).stdout.split()
    found = sorted(name for name in said if name.partition(".")[0] not in ("C", "POSIX"))
    name = next((name for name in found if name.startswith("tr_TR")), found[0] if found else "C")
    return _with_env(way, {"LC_ALL": name, "LANG": name, "LANGUAGE": name.partition("_")[0]}), f"LC_ALL={name}"


def _umask(way: Way) -> tuple[Way, str]:
    return replace(way, umask=0o077), "umask 077, for the project's files too"


def _hostname(way: Way) -> tuple[Way, str]:
    words = ("unshare", "--uts", "--", "sh", "-c", f'hostname {_HOST} && exec "$@"', "sh")
    return replace(way, before=(*words, *way.before)), f"host name {_HOST}"


def _cpus(way: Way) -> tuple[Way, str]:
    here = sorted(os.sched_getaffinity(0))
    if len(here) == 1:
        raise CannotVaryError("there is one CPU")
    return replace(way, before=("taskset", "--cpu-list", str(here[0]), *way.before)), f"1 CPU instead of {len(here)}"


def _order(way: Way) -> tuple[Way, str]:
    if shutil.which("disorderfs") is None:
        raise CannotVaryError("disorderfs is not installed (apt install disorderfs)")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise CannotVaryError("/dev/fuse cannot be opened")
    return replace(way, shuffled=True), "folders of recipes and locks list their names shuffled, by disorderfs"


def _environment(way: Way) -> tuple[Way, str]:
    return _with_env(way, _DISTURBING), f"{len(_DISTURBING)} settings of other tools in the environment"


def _docker(way: Way) -> tuple[Way, str]:
    from builder.sandbox import docker

    if reason := docker.missing():
        raise CannotVaryError(reason)
    return replace(way, engine="docker"), "in a Docker container"


def _with_env(way: Way, more: Mapping[str, str]) -> Way:
    return replace(way, env={**way.env, **more})


VARIATIONS: Mapping[str, Variation] = {
    "again": Variation("nothing varied, in a store of its own", _again),
    "path": Variation("another place, a long one with blanks", _path),
    "user": Variation("an ordinary user instead of root", _user),
    "past": Variation("the clock ten years behind", _clock(-_YEARS)),
    "future": Variation("the clock ten years ahead", _clock(_YEARS)),
    "zone": Variation("another time zone", _zone),
    "locale": Variation("another locale", _locale),
    "umask": Variation("umask 077", _umask),
    "hostname": Variation("another host name", _hostname),
    "cpus": Variation("one CPU", _cpus),
    "order": Variation("another order of names in folders", _order),
    "environment": Variation("settings of other tools", _environment),
    "docker": Variation("the docker engine", _docker),
}
"""Every variation by name, in the order in which they are tried."""
