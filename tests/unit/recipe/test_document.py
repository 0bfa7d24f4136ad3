"""Lines of tables and keys, against documents made with known places."""

from __future__ import annotations

from pathlib import Path

import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st

from builder.recipe.document import Document, Place, nearest, read

BARE = st.from_regex(r"[A-Za-z0-9_-]{1,6}", fullmatch=True)
ANY = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\x7f"), max_size=6)
VALUES = st.sampled_from(
    [
        "1",
        '"a # no comment ]"',
        "'[[x]]'",
        '["a", # b ]\n  "c",\n]',
        '{ k = "}" }',
        '"""\n[no.table]\nk = 1 \\""" """',
        "'''\n[[no]]\n'''",
        "[[1, 2],\n\n [3]]",
        "1979-05-27T07:32:00Z",
        "[\"\"\"x\n\"\"\", '''y\n''']",
    ]
)


def _quoted(name: str) -> str:
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, dict[Place, int]]:
    """A TOML text, and the line of every key and heading in it."""
    lines: list[str] = []
    expected: dict[Place, int] = {}

    def fill() -> None:
        if draw(st.booleans()):
            lines.append(draw(st.sampled_from(["", "# [comment]", "   ", "\t# k = 1"])))

    def keys(prefix: Place) -> None:
        for name in draw(st.lists(st.one_of(BARE, ANY), unique=True, max_size=3)):
            fill()
            written = name if BARE.validate() is None and name.isascii() and _is_bare(name) else _quoted(name)
            expected[(*prefix, name)] = len(lines) + 1
            lines.extend(f"  {written} = {draw(VALUES)}{draw(st.sampled_from(['', ' # end']))}".split("\n"))

    for name in draw(st.lists(BARE, unique=True, max_size=3)):
        fill()
        if draw(st.booleans()):
            expected[(name,)] = len(lines) + 1
            lines.append(f"[{name}]")
            keys((name,))
            continue
        for index in range(draw(st.integers(1, 3))):
            fill()
            expected[(name, index)] = len(lines) + 1
            lines.append(f"[[ {name} ]] # member")
            keys((name, index))
            expected[(name, index, "inner-", "x.y")] = len(lines) + 1
            lines.append(f'[{name}."inner-"."x.y"]')
            keys((name, index, "inner-", "x.y"))
    return "\n".join(lines) + draw(st.sampled_from(["", "\n"])), expected


def _is_bare(name: str) -> bool:
    return name != "" and all(c.isalnum() or c in "_-" for c in name)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("document") / "recipe.toml"


@given(documents())
def test_every_key_and_table_is_found_on_its_line(file: Path, made: tuple[str, dict[Place, int]]) -> None:
    text, expected = made
    file.write_text(text, encoding="utf-8")
    document = read(file)
    assert document.data == tomli.loads(text)
    assert {place: document.line(place) for place in expected} == expected


def _document(file: Path, text: str) -> Document:
    file.write_bytes(text.encode())
    return read(file)


def test_an_unknown_place_is_that_of_what_holds_it(file: Path) -> None:
    document = _document(file, "\n[a]\nlist = [\n  { k = 1 },\n  { k = 'two' },\n]\n")
    assert document.line(("a", "list", 1, "k")) == 3
    assert document.line(("a", "list"), "two") == 5
    assert document.line(("a", "list"), "three") == 3
    assert document.line(("a", "list"), "wo") == 3
    assert document.line(("b",)) == 1


def test_dotted_keys_and_windows_line_ends(file: Path) -> None:
    document = _document(file, '[a]\r\n\r\nb . "c d".e = 1\r\n')
    assert document.line(("a", "b", "c d", "e")) == 3


def test_an_array_of_tables_stands_where_its_first_member_does(file: Path) -> None:
    assert _document(file, "a = 1\n[[b]]\n[[b]]\n").line(("b",)) == 2


def test_nearest_ignores_case_and_gives_up() -> None:
    assert nearest("packges", ["Packages", "Kind"]) == "Packages"
    assert nearest("zzz", ["Packages", "Kind"]) is None
