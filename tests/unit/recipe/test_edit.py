"""Changing one line of a recipe: `builder lock --driver` up to the lock itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.cli import cli
from builder.errors import UsageError
from builder.recipe.edit import set_text, written

HEAD = """\
# 580.76.05 here is a comment
[Distribution]
Distribution = "debian"
Release = "bookworm"
[Output]
ImageId = "demo"
ImageVersion = "1"
[Content]
SourceDateEpoch = 1760572800

[[Stage]]
Name = "base"
Kind = "debian"
"""
DRIVER = """
[[Stage]] # the driver
Name = "driver"
Kind = "nvidia-runfile"
  Version   =  "580.76.05"   # = the host's "580.76.05"
OpenCL = true
"""
VARIANTS = """
[[Stage]]
Name = "driver"
Kind = "nvidia-host"

[[Variant.nvidia.Stage]]
Name = "driver"
Kind = "nvidia-runfile"
Version = '580.76.05'

[Variant.pypi]
"""


def recipe(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_bytes(text.encode())
    return path


def edited(path: Path, version: str = "580.95.05") -> str:
    with written(set_text(path, "nvidia-runfile", "Version", version)):
        pass
    return path.read_bytes().decode()


def test_one_line_changes_and_its_comment_stays(tmp_path: Path) -> None:
    path = recipe(tmp_path, HEAD + DRIVER)
    wanted = DRIVER.replace('Version   =  "580.76.05"', 'Version   =  "580.95.05"')
    assert edited(path) == HEAD + wanted


def test_in_a_variant(tmp_path: Path) -> None:
    assert edited(recipe(tmp_path, HEAD + VARIANTS)) == HEAD + VARIANTS.replace("'580.76.05'", '"580.95.05"')


def test_a_variant_that_changes_the_version_alone(tmp_path: Path) -> None:
    without = DRIVER.replace('Version   =  "580.76.05"   # = the host\'s "580.76.05"\n', "")
    more = '[[Variant.new.Stage]]\nName = "driver"\nVersion = "580.82.07"\n'
    assert edited(recipe(tmp_path, HEAD + without + more)).endswith('Version = "580.95.05"\n')


def test_line_ends_of_another_system_stay(tmp_path: Path) -> None:
    text = (HEAD + DRIVER).replace("\n", "\r\n")
    assert edited(recipe(tmp_path, text)) == text.replace('=  "580.76.05"', '=  "580.95.05"')


def test_mode_and_a_link_to_the_file_stay(tmp_path: Path) -> None:
    path = recipe(tmp_path, HEAD + DRIVER)
    path.chmod(0o640)
    (tmp_path / "linked").mkdir()
    link = tmp_path / "linked" / "recipe.toml"
    link.symlink_to(path)
    edited(link)
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640
    assert "580.95.05" in path.read_text()
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["recipe.toml"]


@settings(deadline=None)  # it writes files
@given(st.text(alphabet='ab #"=[]\t', max_size=30))
def test_whatever_the_comment_is(tmp_path_factory: pytest.TempPathFactory, comment: str) -> None:
    text = HEAD + DRIVER.replace("# = the host's", f"#{comment}")
    path = recipe(tmp_path_factory.mktemp("recipe"), text)
    assert edited(path) == text.replace('=  "580.76.05"', '=  "580.95.05"', 1)


def test_what_fails_leaves_the_recipe_as_it_was(tmp_path: Path) -> None:
    path = recipe(tmp_path, HEAD + DRIVER)
    seen = []

    def interrupted() -> None:
        with written(set_text(path, "nvidia-runfile", "Version", "1")):
            seen.append(path.read_text())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert 'Version   =  "1"' in seen[0]
    assert path.read_text() == HEAD + DRIVER


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (HEAD, "no stage of this recipe, in any variant, is of Kind nvidia-runfile; it has debian"),
        (HEAD + DRIVER + '[[Variant.a.Stage]]\nName = "driver"\nVersion = "580.82.07"\n', "2 stages have a Version"),
        (HEAD + DRIVER.replace('"580.76.05"   #', '"""580.76.05""" #'), "is not a text on a line of its own"),
        (HEAD + DRIVER.replace('"580.76.05"   #', '"580\\u002e76.05" #'), "is not a text on a line of its own"),
    ],
)
def test_what_is_refused_by_name_and_place(tmp_path: Path, text: str, says: str) -> None:
    path = recipe(tmp_path, text)
    with pytest.raises(UsageError, match=says):
        set_text(path, "nvidia-runfile", "Version", "580.95.05")


def lock(path: Path, *arguments: str) -> None:
    CliRunner().invoke(cli, ["lock", str(path), *arguments], catch_exceptions=False, standalone_mode=False)


def test_an_unknown_driver_is_an_error_with_the_known_ones(tmp_path: Path) -> None:
    path = recipe(tmp_path, HEAD + DRIVER)
    with pytest.raises(UsageError, match=r"no published sha256 of driver '580\.95\.5' .*known are .*580\.95\.05"):
        lock(path, "--driver", "580.95.5")
    assert path.read_text() == HEAD + DRIVER


def test_a_recipe_without_such_a_stage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no stage of this recipe"):
        lock(recipe(tmp_path, HEAD), "--driver", "580.95.05")


@pytest.mark.parametrize("option", ["--check", "--diff"])
def test_what_changes_nothing_takes_no_driver(tmp_path: Path, option: str) -> None:
    with pytest.raises(UsageError, match="leave one of them out"):
        lock(recipe(tmp_path, HEAD + DRIVER), "--driver", "580.95.05", option)
