"""Checks of the machine that need no root and no real fault."""

from __future__ import annotations

from pathlib import Path

import pytest
import zstandard

from builder.sandbox import probes


def test_a_tool_that_is_missing_names_its_package() -> None:
    check = probes.tool("thing", ("no-such-tool-here", "--version"), "thing-package")
    assert (check.status, check.mend) == ("fail", "sudo apt install thing-package")
    assert "No such file" in check.found


def test_a_tool_that_does_not_run_is_a_failure() -> None:
    assert probes.tool("false", ("false",), "coreutils").status == "fail"


def test_a_tool_shows_its_version() -> None:
    check = probes.tool("tar", ("tar", "--version"), "tar")
    assert check.status == "ok"
    assert check.found.replace(".", "").isdigit()


def test_another_zstandard_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    assert probes.zstandard_wheel().status == "ok"
    monkeypatch.setattr(zstandard, "__version__", "0.1.0")
    check = probes.zstandard_wheel()
    assert check.status == "fail"
    assert check.mend == "pip install 'zstandard==0.25.0'"
    monkeypatch.undo()
    monkeypatch.setattr(zstandard, "backend", "cffi")
    assert probes.zstandard_wheel().status == "fail"


def test_disk_is_judged_by_what_recipes_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for free, status in ((1 << 30, "fail"), (10 << 30, "warn"), (100 << 30, "ok")):
        monkeypatch.setattr(probes.shutil, "disk_usage", lambda _, free=free: type("Usage", (), {"free": free}))
        assert probes.disk(tmp_path / "not" / "made" / "yet").status == status


def test_a_store_that_cannot_be_made_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check = probes.writable(tmp_path / "file" / "store")
    assert check.status == "fail"
    assert "BUILDER_STORE" in check.mend
    assert probes.sandbox(tmp_path / "file" / "store").status == "fail"


def test_a_keyring_without_keys_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keyring = tmp_path / "keyring.gpg"
    monkeypatch.setattr(probes, "KEYRING", keyring)
    assert "debian-archive-keyring" in probes.keyring().mend
    keyring.write_text("not keys")
    assert probes.keyring().status == "fail"
    keyring.write_bytes(b"\x99\x02\x0d")
    assert probes.keyring().status == "ok"
