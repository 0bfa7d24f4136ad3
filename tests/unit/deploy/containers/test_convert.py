"""containers.toml made from other files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builder.deploy.containers import Loaded, load
from builder.deploy.containers.convert import convert

Read = Callable[..., Loaded]


def back(folder: Path, text: str) -> Loaded:
    (folder / "containers.toml").write_text(text, encoding="utf-8")
    return load(folder / "containers.toml")


def test_the_result_says_the_same(tmp_path: Path, read: Read, generations: dict[str, dict[str, Any]]) -> None:
    loaded = read(generations)
    assert back(tmp_path, convert(loaded)).containers == loaded.containers


def test_the_order_of_the_file_does_not_matter(read: Read, generations: dict[str, dict[str, Any]]) -> None:
    assert convert(read(generations)) == convert(read(dict(reversed(generations.items()))))


def test_a_toml_file_stays_what_it_is(tmp_path: Path) -> None:
    loaded = load(Path(__file__).parents[4] / "docs" / "containers.example.toml")
    again = back(tmp_path, convert(loaded))
    assert again.containers == loaded.containers
    assert (again.template_ids, again.spare_ids) == (loaded.template_ids, loaded.spare_ids)


def test_what_has_no_counterpart_stands_there_as_comments(one: Read) -> None:
    lines = convert(one()).splitlines()
    assert '# dependencies: ["750"]' in lines
    assert '# ports: ["8000:8000"]' in lines
    assert '#   vllm_model: "org/model"' in lines
    assert any(line.startswith("# firewall.rules: ") for line in lines)
    assert any(line.startswith('# Profile = "..." names a profile of the recipe') for line in lines)
    assert all(len(line) <= 120 for line in lines)


def test_what_was_refused_is_said_and_left_out(tmp_path: Path, one: Read) -> None:
    text = convert(one(memory_mb="8G"))
    assert '# 702 is left out:\n# memory_mb must be a whole number, not "8G"\n' in text
    assert list(back(tmp_path, text).containers) == [720]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"name": "template"}, "its Name is 702's"),
        ({"mac_address": "02:00:00:00:07:20"}, "its Mac is 702's"),
        ({"network_config": {"ip": "192.0.2.220/24"}}, "its Ip is 702's"),
    ],
)
def test_the_second_of_two_that_share_something_is_a_comment(
    tmp_path: Path, one: Read, changes: dict[str, Any], why: str
) -> None:
    text = convert(one(**changes))
    assert f"# 720 is left out: {why}" in text
    assert "# Ctid = 720" in text.splitlines()
    assert list(back(tmp_path, text).containers) == [702]


def test_many_lines_of_lxc_are_one_a_line(tmp_path: Path, one: Read) -> None:
    loaded = one(lxc_options=[f"lxc.environment=NAME{number}=value" for number in range(9)])
    text = convert(loaded)
    assert "Raw = [\n" in text
    assert back(tmp_path, text).containers[702].raw == loaded.containers[702].raw


def test_no_comment_can_become_a_setting(tmp_path: Path, one: Read) -> None:
    text = convert(one(application_script="x\n[[Container]]\nCtid = 999\nName = 'evil'\r\x0b\u2028Ctid = 998"))
    assert set(back(tmp_path, text).containers) == {702, 720}
