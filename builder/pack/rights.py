"""What of a template may be passed on: by the grants in `builder/data/licences.toml`, else by what a part states.

A reading of licences for orientation, with its sources: no legal advice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources
from typing import Any

import tomli


class May(Enum):
    """Whether a part may be passed on, the strictest first."""

    OWN_USE = "own use only"
    UNKNOWN = "not known"
    APPLICATION = "inside an application"
    UNMODIFIED = "unmodified"
    YES = "yes"


@dataclass(frozen=True)
class Grant:
    """What a licence lets one do with the parts that fit its patterns."""

    id: str
    licence: str
    may: May
    says: str
    source: str
    patterns: Mapping[str, tuple[str, ...]]  # by the kind of a part


@dataclass(frozen=True)
class Part:
    """One deb, wheel, file by URL, stage or program in a template, and what may be done with it."""

    kind: str  # deb | wheel | url | stage | file
    name: str  # of a file: its path
    version: str
    stated: tuple[str, ...]  # the licences that it names itself
    may: May
    says: str
    grant: str = ""  # its id; "" when the part's own statement decided
    licence: str = ""  # the grant's
    source: str = ""


_PATTERNS = {"deb": "Debs", "wheel": "Wheels", "url": "Urls", "file": "Files", "stage": "Kinds"}


@cache
def grants() -> tuple[Grant, ...]:
    """Every grant that is known, in the order in which they are tried."""
    return tuple(
        Grant(
            id=row["Id"],
            licence=row["Licence"],
            may=May(row["May"]),
            says=row["Says"],
            source=row["Source"],
            patterns={kind: tuple(row.get(key, ())) for kind, key in _PATTERNS.items()},
        )
        for row in _data()["Grant"]
    )


def read_on() -> str:
    """The day on which the licences were read."""
    return str(_data()["Read"])


def of_deb(name: str, version: str, licences: Sequence[str], urls: Iterable[str]) -> Part:
    """A Debian package, judged by the component of the archive that its `urls` name when there is no grant."""
    stated = _data()["Stated"]
    found = (re.search(r"/pool/(?:updates/)?([^/]+)/", url) for url in urls)
    component = next((match[1] for match in found if match), "")
    if component in stated["Free-Components"]:
        says = f"free software of the archive's component {component}" + _with_source(licences)
        return Part("deb", name, version, tuple(licences), May.YES, says, source=stated["Source"])
    if granted := _granted("deb", name, name, version, licences):
        return granted
    says = f"component {component or 'not known'}: see /usr/share/doc/{name}/copyright"
    return Part("deb", name, version, tuple(licences), May.UNKNOWN, says, source=stated["Source"])


def of_wheel(name: str, version: str, licences: Sequence[str]) -> Part:
    """A wheel, judged by the licences that its metadata names when there is no grant."""
    if granted := _granted("wheel", name, name, version, licences):
        return granted
    source = _data()["Stated"]["Source"]
    if not licences:
        return Part("wheel", name, version, (), May.UNKNOWN, "its metadata names no licence", source=source)
    if not all(map(_is_free, licences)):
        says = "not a free licence by its name: see the text in the package"
        return Part("wheel", name, version, tuple(licences), May.UNKNOWN, says, source=source)
    says = "free software" + _with_source(licences)
    return Part("wheel", name, version, tuple(licences), May.YES, says, source=source)


def of_url(name: str, filename: str) -> Part:
    """A file by URL, by the name under which it was published."""
    says = "nothing states its licence: see the file"
    return _granted("url", filename, name, "", ()) or Part("url", name, "", (), May.UNKNOWN, says)


def of_stage(name: str, kind: str) -> Part | None:
    """A stage whose layer comes from no package; None for one whose inputs say it all."""
    return _granted("stage", kind, name, "", ())


def of_file(path: str, mode: int) -> Part | None:
    """A program that a grant names, wherever it comes from; None for any other file."""
    if not mode & 0o111:
        return None
    return _granted("file", path.rpartition("/")[2], path, "", ())


def strictest(parts: Iterable[Part]) -> May:
    """What may be done with all of them together."""
    order = list(May)
    return min((part.may for part in parts), key=order.index, default=May.YES)


def of_template(manifest: Mapping[str, Any], bill: Mapping[str, Any]) -> Iterator[Part]:
    """The parts of a template, from its manifest and its bill of materials.

    Raises KeyError, TypeError, ValueError or AttributeError when one of the two is damaged.
    """
    for row in bill.get("components", ()):
        reference = str(row["bom-ref"])
        urls = [each["url"] for each in row.get("externalReferences", ())]
        if reference.startswith("url:"):
            yield of_url(reference.removeprefix("url:"), row["name"])
        elif reference.startswith("pkg:deb/"):
            yield of_deb(row["name"], row["version"], _stated(row), urls)
        else:
            yield of_wheel(row["name"], row["version"], _stated(row))
    for stage in manifest["stages"]:
        if part := of_stage(stage["name"], stage["kind"]):
            yield part
    for file in manifest["files"]:
        if file["type"] == "file" and (part := of_file(file["path"], int(file["mode"], 8))):
            yield part


def _granted(kind: str, word: str, name: str, version: str, licences: Sequence[str]) -> Part | None:
    for grant in grants():
        if any(fnmatchcase(word, pattern) for pattern in grant.patterns[kind]):
            of = (grant.may, grant.says, grant.id, grant.licence, grant.source)
            return Part(kind, name, version, tuple(licences), *of)
    return None


def _is_free(licence: str) -> bool:
    """Whether every part of an SPDX expression, or a name in words, is known to be a free licence."""
    stated = _data()["Stated"]
    if re.search(stated["Closed"], licence, re.IGNORECASE):
        return False
    return all(re.search(stated["Free"], part, re.IGNORECASE) for part in re.split(r"\band\b", licence, flags=re.I))


def _with_source(licences: Iterable[str]) -> str:
    is_copyleft = any(re.search(_data()["Stated"]["Copyleft"], licence, re.IGNORECASE) for licence in licences)
    return ", with its source or an offer of it" if is_copyleft else ""


def _stated(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The licences that a component of a bill of materials has, without those that a grant brought."""
    found = row.get("licenses", ())
    return tuple(
        each.get("expression") or each["license"].get("id") or each["license"]["name"]
        for each in found
        if each.get("acknowledgement", each.get("license", {}).get("acknowledgement")) != "concluded"
    )


@cache
def _data() -> dict[str, Any]:
    return tomli.loads(resources.files("builder").joinpath("data/licences.toml").read_text(encoding="utf-8"))
