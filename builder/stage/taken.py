"""Run by a venv's own interpreter, in the template: take bytecode from an earlier layer, where it would come out alike.

It depends on the source, its path, and the interpreter with what this loads when it starts: modules of wheels, for
path configuration files of the venv (site, "*.pth"), which may bring a codec for sources. Uses the standard library
only, as old as Python 3.9.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from glob import escape, glob
from importlib.util import source_from_cache

_STARTUP = (".pth", "sitecustomize.py", "usercustomize.py")

Candidate = tuple[str, str, str, str]
"""A source and its sha256, its bytecode and the sha256 of that."""


def main(earlier: str, known_file: str, taken_file: str) -> None:
    """Take what can be from the tree `earlier`, whose files have the sha256 of the JSON object in `known_file`.

    The modules whose bytecode was taken are written to `taken_file`, as a JSON list.
    """
    with open(known_file, encoding="utf-8") as file:
        known = json.load(file)
    site = sysconfig.get_path("purelib")
    loaded = [getattr(module, "__file__", None) or "" for module in list(sys.modules.values())]
    taken: list[str] = []
    if starts_alike(site, [path for path in loaded if path.startswith(f"{sys.prefix}/")], known):
        wanted = candidates(set(records(site)), set(records(site, earlier)), known)
        with ProcessPoolExecutor() as pool:
            taken = [source for source in pool.map(partial(take, earlier), wanted, chunksize=64) if source]
    with open(taken_file, "w", encoding="utf-8") as file:
        json.dump(taken, file)


def starts_alike(site: str, loaded: list[str], known: Mapping[str, str]) -> bool:
    """Whether the interpreter loads from the venv, before any program, what it loaded in the earlier layer."""
    now = {f"{site}/{name}" for name in os.listdir(site) if name.endswith(_STARTUP)}
    then = {path for path in known if os.path.dirname(path) == site and path.endswith(_STARTUP)}
    return now == then and all(known.get(path) == sha256_of(path) for path in (*now, *loaded))


def records(site: str, root: str = "") -> Iterator[str]:
    """The paths of all files in `site` that distributions in `root` + `site` say they brought."""
    for record in glob(f"{escape(root + site)}/*.dist-info/RECORD"):
        with open(record, encoding="utf-8", newline="") as file:
            for row in csv.reader(file):
                if row and ".." not in row[0].split("/"):
                    yield f"{site}/{row[0]}"


def candidates(now: set[str], then: set[str], known: Mapping[str, str]) -> Iterator[Candidate]:
    """What was compiled then and would be now, in the order of `known`; a wheel may bring bytecode of its own."""
    for cached, sha256 in known.items():
        if cached.endswith(f".{sys.implementation.cache_tag}.pyc") and cached not in now and cached not in then:
            source = source_from_cache(cached)
            if source in now and source in then and source in known:
                yield source, known[source], cached, sha256


def take(earlier: str, candidate: Candidate) -> str | None:
    """Copy bytecode as py_compile writes it: the source, or None where one of the two is not what it was."""
    source, source_sha256, cached, sha256 = candidate
    try:
        with open(earlier + cached, "rb") as file:
            code = file.read()
        if sha256_of(source) != source_sha256 or hashlib.sha256(code).hexdigest() != sha256:
            return None
        mode = (os.stat(source).st_mode | 0o200) & 0o666
        os.makedirs(os.path.dirname(cached), exist_ok=True)
        fd = os.open(cached, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except OSError:
        return None
    with open(fd, "wb") as file:
        file.write(code)
    return source


def sha256_of(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


if __name__ == "__main__":
    main(*sys.argv[1:])
