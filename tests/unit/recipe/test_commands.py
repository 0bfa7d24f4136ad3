"""What a user of `builder recipe`, `schema` and `export` sees."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from builder.commands import recipe as commands
from builder.recipe.keys import KindInfo

Write = Callable[[str], Path]
Run = Callable[..., str]

VARIANT = '[Recipe]\nDefaultVariant = "a"\n[Variant.a]\n[Variant.b.Output]\nImageVersion = "2"\n'


@pytest.fixture
def run(kinds: Mapping[str, KindInfo], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(commands, "KINDS", kinds)

    def invoke(command: click.Command, *arguments: str | Path) -> str:
        result = CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    return invoke


def test_show_has_every_setting_with_its_default(run: Run, recipe: Write, minimal: str) -> None:
    folder = recipe(minimal.replace('["systemd"]', '["systemd", "dbus"]') + VARIANT)
    lines = run(commands.recipe, "show", folder, "--variant", "b").splitlines()
    assert lines[0] == f"RECIPE: {folder}/recipe.toml, variant b"
    assert "    STAGE base:" in lines
    assert "                ImageVersion: 2" in lines
    assert "                      Mirror: http://deb.debian.org/debian" in lines
    assert "                Repositories: none" in lines
    at = lines.index("                    Packages: systemd")
    assert lines[at + 1] == "                              dbus"


def test_show_as_json_is_the_recipe_with_nothing_left_open(run: Run, recipe: Write, minimal: str) -> None:
    shown = json.loads(run(commands.recipe, "show", recipe(minimal + VARIANT), "--json"))
    assert (shown["Variant"], shown["Variants"]) == ("a", ["a", "b"])
    assert shown["Output"] == {"ImageId": "small", "ImageVersion": "1", "CompressLevel": 3}
    assert shown["Stage"][0]["Packages"] == ["systemd"]
    assert shown["Target"] is None


def test_check_says_what_it_looked_at(run: Run, recipe: Write, minimal: str) -> None:
    folder = recipe(minimal + VARIANT + '[[Variant.b.Stage]]\nName = "f"\nKind = "files"\nExtraTrees = ["files:/"]\n')
    said = run(commands.recipe, "check", folder)
    assert [line.split() for line in said.splitlines()[1:3]] == [
        ["a", "1", "0", "0", "0", "0"],
        ["b", "2", "0", "0", "0", "1"],
    ]
    assert said.splitlines()[-1].startswith(f"{folder}/recipe.toml is valid")
    checked = json.loads(run(commands.recipe, "check", folder, "--json"))
    assert checked["default"] == "a"
    assert checked["variants"][1] == {"variant": "b", "stages": 2, "skipped": 0, "venvs": 0, "urls": 0, "files": 1}


def test_schema_is_json_or_tables(run: Run) -> None:
    assert json.loads(run(commands.schema))["title"] == "Recipe of a template"
    tables = run(commands.schema, "--markdown")
    assert '## Kind = "wheels"' in tables
    assert "| `GpuCode` | text | `all` | What to keep. One of: all, target. |" in tables
    assert "| `Users.Uid` | int | `900` | Number. |" in tables


def test_export_writes_a_tree(run: Run, recipe: Write, minimal: str, tmp_path: Path) -> None:
    said = run(commands.export, "mkosi", recipe(minimal), tmp_path / "tree", "--mkosi-version", "26")
    assert said == f"{tmp_path}/tree: 1 images for mkosi 26\n"
    assert (tmp_path / "tree/mkosi.images/base/mkosi.conf").exists()


@pytest.mark.parametrize("command", [commands.recipe, commands.schema, commands.export])
def test_help_has_an_example(command: click.Command) -> None:
    for each in command.commands.values() if isinstance(command, click.Group) else [command]:
        assert "Example:" in CliRunner().invoke(each, ["--help"]).output
