"""What the packages of a template say about their own licences, read from the files that they installed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from email.parser import HeaderParser

from packaging.utils import canonicalize_name

from builder.pack.content import Member

_SHORT = 120  # a `License` field longer than this is the licence's text and not its name
_CLASSIFIER = "License :: "
_METADATA = re.compile(r"[^/]\.dist-info/METADATA\Z")
_COPYRIGHT = re.compile(r"usr/share/doc/([^/]+)/copyright")


def wheel_licences(members: Iterable[Member]) -> Mapping[tuple[str, str], tuple[str, ...]]:
    """Name (PEP 503) and version of each installed wheel to its licences.

    In this order: License-Expression (PEP 639), a short License, the licence classifiers (core metadata
    specifications). Wheels that say nothing are left out.
    """
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    for member in members:
        if not _METADATA.search(member.entry.path) or member.entry.type != "file":
            continue
        fields = HeaderParser().parsestr(_text(member).partition("\n\n")[0])
        name, version = fields.get("Name", ""), fields.get("Version", "")
        classifiers = [str(line) for line in fields.get_all("Classifier", []) if str(line).startswith(_CLASSIFIER)]
        for said in (
            [fields.get("License-Expression", "")],
            [fields.get("License", "")],
            [line.rpartition(" :: ")[2] for line in classifiers],
        ):
            names = tuple(sorted({text.strip() for text in said if _is_a_name(text)}))
            if names:
                found[canonicalize_name(name), version] = names
                break
    return found


def deb_licences(members: Iterable[Member]) -> Mapping[str, tuple[str, ...]]:
    """Each Debian package to the short names in its machine-readable copyright file (DEP 5), where it has one."""
    found = {}
    for member in members:
        match = _COPYRIGHT.fullmatch(member.entry.path)
        if match is None or member.entry.type != "file":
            continue
        text = _text(member)
        if not text.startswith("Format:"):
            continue
        names = {name.strip() for name in re.findall(r"^License:[ \t]*(\S.*)$", text, re.MULTILINE)}
        if names:
            found[match[1]] = tuple(sorted(names))
    return found


def _is_a_name(text: str) -> bool:
    return 0 < len(text.strip()) <= _SHORT and "\n" not in text.strip() and text.strip() != "UNKNOWN"


def _text(member: Member) -> str:
    return (member.tree / member.entry.path).read_text("utf-8", errors="replace")
