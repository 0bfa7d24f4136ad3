"""`builder containers`, as a user sees it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from builder.commands.containers import containers
from builder.deploy.addresses import mac_for
from builder.deploy.containers import Loaded
from builder.errors import BuilderError, UsageError

PROJECT = Path(__file__).parents[4]
EXAMPLE = str(PROJECT / "docs" / "containers.example.toml")


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(containers, [str(argument) for argument in arguments])
    if isinstance(result.exception, BuilderError):
        raise result.exception
    return result


@pytest.fixture
def phoenix(read: Callable[..., Loaded], generations: dict[str, dict[str, Any]]) -> Path:
    source = read(generations).source
    assert source is not None
    return source


def test_show_lists_containers_and_then_what_is_to_be_said(phoenix: Path) -> None:
    lines = run("show", "--file", phoenix).output.splitlines()
    assert lines[0].split() == ["ctid", "name", "serves", "ip", "gpus", "memory", "cores", "template"]
    assert lines[2].split() == ["702", "flat", "org/model", "192.0.2.72/24", "0,1", "8.0", "GiB", "4", "720"]
    assert any(line.startswith("702: not used: ") for line in lines)


def test_show_of_one_container_says_which_mac_it_will_have() -> None:
    output = run("show", "921", "--file", EXAMPLE).output
    assert f"Mac: {mac_for('vllm-fp8', 921)} (follows from Name and Ctid)" in output
    assert "Profile: fp8" in output


def test_show_of_a_refused_container_says_why(one: Callable[..., Loaded]) -> None:
    assert "702: refused: memory_mb must be" in run("show", "702", "--file", one(memory_mb="x").source).output


def test_show_of_one_that_there_is_not_names_those_that_there_are() -> None:
    with pytest.raises(UsageError, match="has no container 999; it has 920, 921, 922, 950, 951"):
        run("show", "999", "--file", EXAMPLE)


def test_show_as_json_has_mac_and_findings(phoenix: Path) -> None:
    data = json.loads(run("show", "702", "--file", phoenix, "--json").output)
    assert [made["ctid"] for made in data["containers"]] == [702]
    assert data["containers"][0]["network"]["ip"] == "192.0.2.72/24"
    assert data["containers"][0]["mac"] == "02:00:00:00:07:02"
    assert {found["severity"] for found in data["findings"]} == {"told"}


def test_check_passes_what_is_only_told(phoenix: Path) -> None:
    result = run("check", "--file", phoenix)
    assert result.exit_code == 0
    assert result.output.splitlines()[-1] == f"{phoenix}: 4 containers, nothing wrong"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"memory_mb": "x"}, '702: refused: memory_mb must be a whole number, not "x"'),
        ({"swap": 1}, "702: contradiction: swap_mb is 512 and swap is 1: swap_mb decides"),
    ],
)
def test_check_fails_for_faults(one: Callable[..., Loaded], changes: dict[str, Any], line: str) -> None:
    result = run("check", "--file", one(**changes).source)
    assert result.exit_code == 1
    assert line in result.output.splitlines()
    assert result.output.splitlines()[-1].endswith(", 1 fault")


def test_check_as_json(one: Callable[..., Loaded]) -> None:
    result = run("check", "--json", "--file", one(swap=1).source)
    assert result.exit_code == 1
    assert "contradiction" in {found["severity"] for found in json.loads(result.output)["findings"]}


def test_convert_writes_a_new_file_only(tmp_path: Path, phoenix: Path) -> None:
    output = tmp_path / "containers.toml"
    assert run("convert", phoenix, "--output", output).exit_code == 0
    assert output.read_text() == run("convert", phoenix).output
    output.write_text("mine")
    with pytest.raises(BuilderError, match="is there already; give --force"):
        run("convert", phoenix, "--output", output)
    assert output.read_text() == "mine"
    run("convert", phoenix, "--output", output, "--force")
    assert run("check", "--file", output).exit_code == 0


def test_without_a_file_the_error_says_what_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"neither containers\.toml nor phoenix_lxc_configs\.json here"):
        run("show")


def test_the_example_s_servers_fit_on_their_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    assert run("check", "--file", EXAMPLE).output.splitlines()[-1].endswith(": 5 containers, nothing wrong")


def test_check_knows_the_profiles_of_a_recipe(tmp_path: Path) -> None:
    file = tmp_path / "containers.toml"
    text = '[[Container]]\nCtid = 950\nName = "a"\nProfile = "awk"\nGpus = [0]\n'
    file.write_text(text, encoding="utf-8")
    result = run("check", "--file", file, "--recipe", PROJECT / "recipes" / "vllm-blackwell")
    assert result.exit_code == 1
    assert result.output.startswith("950: refused: ")
    assert 'did you mean "awq"?' in result.output


def test_away_from_recipes_profiles_are_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("check", "--file", EXAMPLE).exit_code == 0
