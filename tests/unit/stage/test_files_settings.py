"""Settings of a `files` stage: what is wrong is said before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from builder.errors import UsageError
from builder.stage import templates, users
from builder.stage.files import KIND

CHECKS = {key.name: key.check for key in KIND.keys}


def test_templates_take_every_value(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("@X@ and @X@, a@b.c, @lower@\n")
    (tmp_path / "b").write_text("@Y_2@")
    assert templates.render([tmp_path / "a", tmp_path / "b"], {"X": "@Y_2@", "Y_2": "2"}) == [
        "@Y_2@ and @Y_2@, a@b.c, @lower@\n",
        "2",
    ]


def test_a_name_without_value_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one\ntwo @PROT@\n")
    with pytest.raises(UsageError) as failure:
        templates.render([tmp_path / "a"], {"PORT": "1"})
    assert str(failure.value) == f'{tmp_path}/a:2: Values has no PROT; did you mean "PORT"?'


def test_a_value_that_no_template_uses_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("nothing\n")
    with pytest.raises(UsageError, match="no template has @PORT@"):
        templates.render([tmp_path / "a"], {"PORT": "1"})


@pytest.mark.parametrize(
    ("key", "value", "wrong"),
    [
        ("ExtraTrees", ["files:/", "files"], None),
        ("ExtraTrees", ["url:x:/opt/x"], None),
        ("ExtraTrees", ["files:opt"], "must be an absolute path"),
        ("ExtraTrees", ["url:x:/run/x"], "/run"),
        ("Templates", ["a"], "must be SOURCE:TARGET"),
        ("Templates", ["a:/etc/a"], None),
        ("EnableUnits", ["ssh"], "full name"),
        ("EnableUnits", ["getty@tty1.service"], None),
        ("EnableUnits", ["a b.service"], "full name"),
        ("Modes", {"/etc/x": "0640 root:adm"}, None),
        ("Modes", {"/etc/x": "u+x"}, "must be set to a mode"),
        ("Modes", {"etc/x": "0640"}, "absolute"),
        ("Links", {"/proc/x": "y"}, "/proc"),
        ("RemoveFiles", ["/usr/share/doc/*"], None),
        ("RemoveFiles", ["usr"], "absolute"),
    ],
)
def test_checks_of_keys(key: str, value: Any, wrong: str | None) -> None:
    check = CHECKS[key]
    assert check is not None
    said = check(value)
    assert said is None if wrong is None else said is not None and wrong in said


def user(**more: Any) -> dict[str, Any]:
    return {"Name": "u", "Uid": 990, "Gid": 0, "Home": "/srv", "Shell": "/bin/sh", "Groups": [], "Comment": "", **more}


def test_users_with_one_id_are_refused() -> None:
    with pytest.raises(UsageError, match="stage x: Users has Uid 990 twice"):
        users.check([user(), user(Name="v")], "stage x")
    with pytest.raises(UsageError, match="Gid of user u must be from 1 to 60000"):
        users.check([user(Gid=70000)], "stage x")
