"""Run by a venv's own interpreter, in the template: is what was installed what was locked? Then its bytecode.

Takes the paths of a JSON list of [name, version], and of one of modules whose bytecode is there. Bytecode is checked by
the source's hash, since times mean nothing in a template (PEP 552). Uses the standard library only, as old as
Python 3.9.
"""

from __future__ import annotations

import importlib.metadata
import json
import py_compile
import re
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import Distribution


def main(wanted_file: str, taken_file: str) -> None:
    with open(wanted_file, encoding="utf-8") as file:
        wanted = [tuple(pair) for pair in json.load(file)]
    with open(taken_file, encoding="utf-8") as file:
        taken = set(json.load(file))
    installed = {normalise(dist.metadata["Name"]): dist for dist in importlib.metadata.distributions()}
    if complaint := difference(wanted, installed) or conflict(installed.values()):
        sys.exit(complaint)
    compile_all([path for path in sources(installed[name] for name, _ in wanted) if path not in taken])


def normalise(name: str) -> str:
    """PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def difference(wanted: Iterable[Sequence[str]], installed: dict[str, Distribution]) -> str | None:
    """What is not installed in its wanted version."""
    for name, version in wanted:
        found = installed[name].version if name in installed else "nothing"
        if found != version:
            return f"{name}: {version} is locked and {found} is installed"
    return None


def conflict(distributions: Iterable[Distribution]) -> str | None:
    """A file that two distributions bring with different bytes: which one is left depends on who comes last."""
    owners: dict[str, tuple[str, str]] = {}
    for distribution in sorted(distributions, key=lambda each: each.metadata["Name"]):
        name = distribution.metadata["Name"]
        for file in distribution.files or ():
            if file.hash is None:
                continue
            other, value = owners.setdefault(str(file), (name, file.hash.value))
            if value != file.hash.value:
                return f"{file} comes with {other} and, with other bytes, with {name}"
    return None


def sources(distributions: Iterable[Distribution]) -> list[str]:
    """The modules of `distributions`, sorted."""
    return sorted(
        {
            str(file.locate())
            for distribution in distributions
            for file in distribution.files or ()
            if file.suffix == ".py" and ".." not in file.parts
        }
    )


def compile_all(paths: Sequence[str]) -> None:
    """Compile every file for which the interpreter can; test data of some packages is no Python of its version."""
    with ProcessPoolExecutor() as pool:
        for _ in pool.map(_compile, paths, chunksize=16):
            pass


def _compile(path: str) -> None:
    py_compile.compile(path, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH, quiet=2)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
