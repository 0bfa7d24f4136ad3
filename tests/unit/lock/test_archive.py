"""Suites, sources and snapshot times."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.lock import archive, control
from builder.recipe.model import Distribution

DEBIAN = Distribution(
    "debian",
    "bookworm",
    "amd64",
    "http://deb.debian.org/debian/",
    "http://security.debian.org/debian-security",
    ("main",),
)
UBUNTU = Distribution(
    "ubuntu",
    "noble",
    "amd64",
    "http://archive.ubuntu.com/ubuntu",
    "http://archive.ubuntu.com/ubuntu",
    ("main", "universe"),
)


def test_debian_has_two_archives() -> None:
    assert archive.sources(DEBIAN) == (
        "Types: deb\nURIs: http://deb.debian.org/debian\nSuites: bookworm bookworm-updates\nComponents: main\n"
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n"
        "Types: deb\nURIs: http://security.debian.org/debian-security\nSuites: bookworm-security\nComponents: main\n"
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    )


def test_suites_of_one_archive_share_a_paragraph() -> None:
    assert archive.sources(UBUNTU) == (
        "Types: deb\nURIs: http://archive.ubuntu.com/ubuntu\nSuites: noble noble-updates noble-security\n"
        "Components: main universe\nSigned-By: /usr/share/keyrings/ubuntu-archive-keyring.gpg\n"
    )


@pytest.mark.parametrize("date", ["Sat, 11 Jul 2026 22:16:37 UTC", "Sat, 11 Jul 2026 22:16:37 +0000"])
def test_a_snapshot_is_half_a_day_younger_than_its_release(date: str) -> None:
    assert archive.snapshot_time(date) == "20260712T101637Z"


_LINE = st.text(st.characters(codec="utf-8", exclude_characters="\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"), min_size=1)
_FIELDS = st.dictionaries(st.from_regex(r"[A-Z][A-Za-z0-9-]{0,10}", fullmatch=True), _LINE.map(str.strip), min_size=1)


@given(st.lists(_FIELDS, min_size=1))
def test_fields_are_read_back_and_continued_lines_are_not_fields(written: list[dict[str, str]]) -> None:
    text = "\n\n".join("".join(f"{name}: {value}\n more: text\n" for name, value in one.items()) for one in written)
    assert [control.fields(paragraph) for paragraph in control.paragraphs(text)] == written
