"""The JSON Schema and the reader agree."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import tomli

from builder.recipe import schema
from builder.recipe.keys import KindInfo
from builder.stage import KINDS

Kinds = Mapping[str, KindInfo]

RECIPES = sorted((Path(__file__).parents[3] / "recipes").glob("*/recipe.toml"))


def _errors(kinds: Kinds, text: str) -> list[str]:
    validator = jsonschema.Draft202012Validator(schema(kinds))
    return [error.message for error in validator.iter_errors(tomli.loads(text))]


def test_it_is_a_schema(kinds: Kinds) -> None:
    jsonschema.Draft202012Validator.check_schema(schema(kinds))
    jsonschema.Draft202012Validator.check_schema(schema(KINDS))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.parent.name)
def test_the_recipes_here_are_valid(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert _errors(KINDS, text) == []
    assert _errors(KINDS, text.replace("[Output]", "[Output]\nImgeId = ''")) != []


def test_variants_may_hold_parts_of_tables(kinds: Kinds, minimal: str) -> None:
    text = f"""{minimal}
[Variant.a.Output]
ImageVersion = "2"
[[Variant.a.Stage]]
Name = "base"
Packages = ["vim"]
[[Variant.a.Stage]]
Name = "new"
Kind = "files"
After = "base"
Users = [{{ Name = "a", Uid = 1 }}]
"""
    assert _errors(kinds, text) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Packages", "Packges"),
        ('"packages"', '"pakages"'),
        ('["systemd"]', '"systemd"'),
        ('"debian"', '"arch"'),
        ("[Output]", "[Outptu]"),
        ('Packages = ["systemd"]', ""),
        ('ImageVersion = "1"', "ImageVersion = 1"),
        ("[[Stage]]", "[Variant.a.Recipe]\n[[Stage]]"),
        ("[[Stage]]", "[Variant.a.Output]\nImge = ''\n[[Stage]]"),
        ("[[Stage]]", '[[Stage]]\nAfter = "x"'),
    ],
)
def test_what_the_reader_refuses_it_refuses(kinds: Kinds, minimal: str, old: str, new: str) -> None:
    assert _errors(kinds, minimal) == []
    assert _errors(kinds, minimal.replace(old, new)) != []


def test_every_key_says_what_it_means(kinds: Kinds) -> None:
    def silent(node: Any, name: str) -> list[str]:
        here = [name] if "type" in node and not node.get("description") and name else []
        return here + [found for key, value in node.get("properties", {}).items() for found in silent(value, key)]

    assert silent(schema(kinds), "") == []
    assert silent(schema(KINDS), "") == []
