"""Small kinds of stages, and a folder to write recipes into."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from builder.recipe.keys import Key, KindInfo, Type


@dataclass(frozen=True)
class SmallKind:
    name: str
    help: str
    keys: tuple[Key, ...]


KINDS = (
    SmallKind(
        "packages",
        "Debian packages.",
        (
            Key("Packages", Type.TEXTS, "Which.", required=True, mkosi="Content"),
            Key("WithDocs", Type.BOOL, "Documentation too.", mkosi="Content"),
        ),
    ),
    SmallKind(
        "wheels",
        "A venv.",
        (
            Key("Venv", Type.TEXT, "Which.", required=True, refers="Venv"),
            Key("Only", Type.TEXTS, "A subset."),
            Key("GpuCode", Type.TEXT, "What to keep.", default="all", choices=("all", "target")),
            Key("Compile", Type.BOOL, "Bytecode too."),
        ),
    ),
    SmallKind(
        "files",
        "Files of the recipe.",
        (
            Key("ExtraTrees", Type.TEXTS, "Trees.", is_file=True, mkosi="Content"),
            Key("PostInstallationScripts", Type.TEXTS, "Scripts.", is_file=True, mkosi="Content"),
            Key("RemoveFiles", Type.TEXTS, "Globs.", mkosi="Content"),
            Key("Masks", Type.TABLE, "Unit to reason."),
            Key(
                "Users",
                Type.TABLES,
                "Users.",
                check=lambda users: "two of one name" if len({user["Name"] for user in users}) < len(users) else None,
                keys=(
                    Key("Name", Type.TEXT, "Login.", required=True),
                    Key("Uid", Type.INT, "Number.", default=900),
                    Key("Keys", Type.TEXT, "A file.", is_file=True),
                ),
            ),
        ),
    ),
)

MINIMAL = """\
[Distribution]
Distribution = "debian"
Release = "bookworm"
[Output]
ImageId = "small"
ImageVersion = "1"
[Content]
SourceDateEpoch = 1760572800
[[Stage]]
Name = "base"
Kind = "packages"
Packages = ["systemd"]
"""


@pytest.fixture
def kinds() -> Mapping[str, KindInfo]:
    return {kind.name: kind for kind in KINDS}


@pytest.fixture
def minimal() -> str:
    """A valid recipe of twelve lines."""
    return MINIMAL


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[[str], Path]:
    """Writes text as a recipe.toml and gives its folder, which has a `files` folder, a script and a link out of it."""
    folder = tmp_path / "small"
    (folder / "files/etc").mkdir(parents=True)
    (folder / "files/etc/motd").write_text("hello\n")
    (folder / "setup").write_text("#!/bin/sh\n")
    (tmp_path / "outside").mkdir()
    (folder / "out").symlink_to("../outside")

    def write(text: str) -> Path:
        (folder / "recipe.toml").write_text(text, encoding="utf-8")
        return folder

    return write
