"""The settings of a recipe: every section and key, its meaning and limits. What a kind of stage adds, the kind says.

Sections and keys that mkosi has carry mkosi's names and meanings (mkosi(1)); the others are written in its style.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from packaging.requirements import InvalidRequirement, Requirement

from builder.recipe.keys import Key, Type, between, matches


@dataclass(frozen=True)
class Section:
    """One top table of a recipe, or one array of tables (`many`) whose members are told apart by `Name`."""

    name: str
    help: str
    keys: tuple[Key, ...]
    many: bool = False
    required: bool = False
    in_variant: bool = True
    """A `[Variant.NAME.*]` may hold it."""

    @property
    def title(self) -> str:
        """As a recipe writes it: ``[Output]``, ``[[Stage]]``."""
        return f"[[{self.name}]]" if self.many else f"[{self.name}]"


@dataclass(frozen=True)
class Archive:
    """What a distribution's recipes take when they do not say otherwise."""

    releases: tuple[str, ...]
    mirror: str
    security_mirror: str


ARCHIVES = {
    "debian": Archive(
        ("bookworm", "trixie"), "http://deb.debian.org/debian", "http://security.debian.org/debian-security"
    ),
    "ubuntu": Archive(("noble",), "http://archive.ubuntu.com/ubuntu", "http://security.ubuntu.com/ubuntu"),
}

ARCHITECTURES = {"x86-64": "amd64"}
"""mkosi's name to Debian's."""


def _url(value: Any) -> str | None:
    try:
        parts = urlsplit(value)
        host, password = parts.hostname, parts.username or parts.password
    except ValueError as error:
        return f"is no URL: {error}"
    if parts.scheme not in ("http", "https") or not host or re.search(r"\s", value):
        return "must be a http or https URL"
    return "must not hold a user name or password" if password else None


def _time(value: Any) -> str | None:
    wrong = "must be a time in UTC (RFC 3339), such as 2025-10-16T00:00:00Z"
    if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?(Z|\+00:00)", value):
        return wrong
    try:
        datetime.fromisoformat(value[:19])
    except ValueError:
        return wrong
    return None


def _requirement(text: str) -> str | None:
    try:
        Requirement(text)
    except InvalidRequirement as error:
        return f"is no requirement (PEP 508): {str(error).splitlines()[0]}"
    return None


_NAME = matches(r"[a-z0-9][a-z0-9._-]*", "lower-case letters, digits, '.', '_' and '-', a letter or digit first")
_ABSOLUTE = matches(r"(/(?!\.{1,2}(/|$))[^/\0]+)+", "an absolute path of the template")

VARIANT_NAME = matches(r"[a-z0-9][a-z0-9-]*", "lower-case letters, digits and '-', a letter or digit first")

_DISTRIBUTION = (
    Key("Distribution", Type.TEXT, "The distribution to install.", required=True, choices=tuple(ARCHIVES)),
    Key("Release", Type.TEXT, "Its release: bookworm or trixie, for Ubuntu noble.", required=True),
    Key("Architecture", Type.TEXT, "mkosi's name of it.", default="x86-64", choices=tuple(ARCHITECTURES)),
    Key("Mirror", Type.TEXT, "Where packages come from; the distribution's own when not given.", check=_url),
    Key("SecurityMirror", Type.TEXT, "The same for security updates. mkosi has no such key.", check=_url),
    Key("Repositories", Type.TEXTS, "Components of the archive to use beside main, such as universe."),
)

_OUTPUT = (
    Key(
        "ImageId",
        Type.TEXT,
        "The template's name.",
        required=True,
        check=matches(r"[A-Za-z0-9][A-Za-z0-9.+-]*", "letters, digits, '.', '+' and '-'"),
    ),
    Key(
        "ImageVersion",
        Type.TEXT,
        "The template's version.",
        required=True,
        check=matches(r"[A-Za-z0-9][A-Za-z0-9.+~-]*", "letters, digits, '.', '+', '~' and '-'"),
    ),
    Key("CompressLevel", Type.INT, "The level of zstd.", default=3, check=between(1, 22)),
)

_CONTENT = (
    Key(
        "SourceDateEpoch",
        Type.INT,
        "Seconds since 1970 (UTC); no file of the template is younger.",
        required=True,
        check=between(0, 2**33 - 1),
    ),
)

_RECIPE = (
    Key("Description", Type.TEXT, "What the template is for, in one sentence."),
    Key("DefaultVariant", Type.TEXT, "The variant that is built when none is asked for."),
)

_TARGET = (
    Key("Name", Type.TEXT, "The GPU's name.", required=True),
    Key(
        "ComputeCapability",
        Type.TEXT,
        'The GPU\'s compute capability, such as "12.0".',
        required=True,
        check=matches(r"[0-9]{1,2}\.[0-9]", 'a compute capability, such as "12.0"'),
    ),
    Key("Devices", Type.INT, "How many there are.", default=1, check=between(1)),
    Key("MemoryMiB", Type.INT, "Memory of one, in MiB.", required=True, check=between(1)),
)

_VENV = (
    Key("Name", Type.TEXT, "How stages refer to it.", required=True, check=_NAME),
    Key(
        "Path",
        Type.TEXT,
        "Where it lies in the template; not needed when only a `cuda-wheels` stage takes it.",
        default="",
        check=_ABSOLUTE,
    ),
    Key(
        "Python", Type.TEXT, "The template's interpreter, such as /usr/bin/python3.11.", required=True, check=_ABSOLUTE
    ),
    Key("Requirements", Type.TEXTS, "What to install (PEP 508).", required=True, check_each=_requirement),
    Key(
        "Constraints",
        Type.TEXTS,
        "Versions that dependencies must keep to, if they come in at all.",
        check_each=_requirement,
    ),
    Key("Overrides", Type.TEXTS, "Requirements that replace what packages ask for.", check_each=_requirement),
    Key(
        "ExcludeNewer",
        Type.TEXT,
        "No file uploaded after this time is taken (RFC 3339, UTC).",
        required=True,
        check=_time,
    ),
    Key("Index", Type.TEXT, "The package index.", default="https://pypi.org/simple", check=_url),
)

_URL = (
    Key("Name", Type.TEXT, "How stages refer to it: url:NAME.", required=True, check=_NAME),
    Key("Url", Type.TEXT, "Where the file is.", required=True, check=_url),
    Key(
        "Sha256",
        Type.TEXT,
        "Its published sha256; when not given, the lock records it at first sight.",
        check=matches(r"[0-9a-f]{64}", "64 hexadecimal digits in lower case"),
    ),
    Key("Size", Type.INT, "Its published size in bytes.", check=between(0)),
)

_STAGE = (
    Key(
        "Name",
        Type.TEXT,
        "The stage's name.",
        required=True,
        check=matches(r"[a-z0-9][a-z0-9-]*", "lower-case letters, digits and '-', a letter or digit first"),
    ),
    Key("Kind", Type.TEXT, "What makes the layer.", required=True),
    Key("Skip", Type.TEXT, "Why this stage is not built; it is built when this is empty or not given."),
    Key(
        "MemoryMiB",
        Type.INT,
        "Memory of all its processes together, in MiB; more ends the build.",
        default=16384,
        check=between(64),
    ),
    Key("TimeoutSeconds", Type.INT, "How long it may run, in seconds.", default=3600, check=between(1)),
)

AFTER = Key("After", Type.TEXT, "In a variant, for a new stage: the stage that it follows; the last when not given.")

SECTIONS = (
    Section("Distribution", "Where Debian packages come from.", _DISTRIBUTION, required=True),
    Section("Output", "What the template is called.", _OUTPUT, required=True),
    Section("Content", "What holds for all of the template's files.", _CONTENT, required=True),
    Section("Recipe", "The recipe itself.", _RECIPE, in_variant=False),
    Section("Target", "The GPU that the template is for: checks, slimming and source builds read it.", _TARGET),
    Section("Venv", "One Python environment, resolved as one set.", _VENV, many=True),
    Section("Url", "One file from the network.", _URL, many=True),
    Section("Stage", "One layer, on top of those of the stages before it.", _STAGE, many=True, required=True),
)
