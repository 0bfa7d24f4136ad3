"""Subordinate ids and what forbids user namespaces."""

from __future__ import annotations

import contextlib
import os
import pwd
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.errors import BuilderError
from builder.sandbox.userns import IDS, become_root, forbidden, newidmap, subordinate

NAME = pwd.getpwuid(os.getuid()).pw_name


def table(folder: Path, text: str, name: str = "subuid") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_lines_count_by_name_and_by_number(tmp_path: Path) -> None:
    assert subordinate(table(tmp_path, f"other:1:9\n{NAME}:100000:65536\n"), os.getuid()) == [(100000, IDS)]
    assert subordinate(table(tmp_path, f"{os.getuid()}:200000:65536\n"), os.getuid()) == [(200000, IDS)]


def test_several_short_ranges_add_up(tmp_path: Path) -> None:
    path = table(tmp_path, f"{NAME}:100000:40000\n{NAME}:300000:40000\n{NAME}:500000:65536\n")
    assert subordinate(path, os.getuid()) == [(100000, 40000), (300000, IDS - 40000)]


def test_a_user_without_a_name_has_its_number(tmp_path: Path) -> None:
    assert subordinate(table(tmp_path, "4000000:100000:65536\n"), 4000000) == [(100000, IDS)]


def test_too_few_ids_give_the_command_that_adds_them_behind_all_others(tmp_path: Path) -> None:
    path = table(tmp_path, f"other:100000:65536\n{NAME}:165536:1000\n", "subgid")
    with pytest.raises(BuilderError) as caught:
        subordinate(path, os.getuid())
    assert str(caught.value) == (
        f"{path}: {NAME} has 1000 subordinate ids, 65535 are needed; "
        f"run: sudo usermod --add-subgids 166536-232071 {NAME}"
    )


def test_no_table_is_no_ids(tmp_path: Path) -> None:
    with pytest.raises(BuilderError, match=r"has 0 subordinate ids.*--add-subuids 100000-165535 "):
        subordinate(tmp_path / "subuid", os.getuid())


@given(st.text(alphabet="ab:0123456789 -\n#", max_size=200))
def test_any_table_gives_exact_ranges_or_an_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = table(tmp_path_factory.getbasetemp(), text)
    with contextlib.suppress(BuilderError):
        assert sum(count for _, count in subordinate(path, os.getuid())) == IDS


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("kernel.unprivileged_userns_clone", "0"),
        ("user.max_user_namespaces", "0"),
        ("kernel.apparmor_restrict_unprivileged_userns", "1"),
    ],
)
def test_the_setting_that_forbids_is_named_with_its_mend(tmp_path: Path, setting: str, value: str) -> None:
    path = tmp_path / setting.replace(".", "/")
    path.parent.mkdir(parents=True)
    path.write_text(f"{value}\n")
    assert forbidden(tmp_path).startswith(f"run: sudo sysctl -w {setting}=")


def test_nothing_that_forbids_leaves_other_causes(tmp_path: Path) -> None:
    assert "container or security module" in forbidden(tmp_path)


def test_a_missing_mapping_tool_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BuilderError, match="nosuchidmap: command not found; run: sudo apt install uidmap"):
        newidmap("nosuchidmap")


@pytest.mark.skipif(os.geteuid() != 0, reason="for root")
def test_root_stays_as_it_is() -> None:
    before = os.readlink("/proc/self/ns/user")
    become_root()
    assert os.readlink("/proc/self/ns/user") == before
