"""Secrets come from files that others cannot read, or the environment, and are shown nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from builder.deploy.profile.secrets import Secrets, kept, new_api_key, obtain, read, to_hide
from builder.errors import BuilderError, UsageError


def secret_file(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_nothing_is_shown() -> None:
    assert repr(Secrets(api_key="k3y", token="t0ken")) == "Secrets()"


def test_a_file_comes_before_the_environment(tmp_path: Path) -> None:
    key = secret_file(tmp_path / "key", "from-file\n")
    environ = {"BUILDER_API_KEY": "from-environment", "HF_TOKEN": "hf_environment"}
    assert read(key, None, environ) == Secrets("from-file", "hf_environment")
    assert read(None, key, environ) == Secrets("from-environment", "from-file")
    assert read(None, None, {"BUILDER_API_KEY": ""}) == Secrets()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620])
def test_a_file_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    key = secret_file(tmp_path / "key", "k3y\n", mode)
    with pytest.raises(UsageError, match=rf"others may read it \(mode {mode:04o}\); chmod 600 {key}"):
        read(key, None, {})


@pytest.mark.parametrize("text", ["", "\n", "two words\n", "two\nlines\n", "clé\n", "x" * 5000])
def test_what_is_no_secret_is_refused_without_being_shown(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="is no secret") as caught:
        read(secret_file(tmp_path / "key", text), None, {})
    assert text.strip() == "" or text.strip() not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{tmp_path}/none: No such file"):
        read(tmp_path / "none", None, {})


def test_a_key_is_made_once_and_kept_for_its_owner(tmp_path: Path) -> None:
    kept = tmp_path / "keys" / "pct" / "fp8"
    first = obtain(None, kept, {}, keep=True)
    assert first.api_key is not None
    assert len(first.api_key) == 64
    assert kept.stat().st_mode & 0o777 == 0o600
    assert kept.parent.stat().st_mode & 0o077 == 0
    assert obtain(None, kept, {}, keep=True) == first


def test_a_given_key_takes_the_place_of_the_kept_one(tmp_path: Path) -> None:
    kept = tmp_path / "fp8"
    obtain(None, kept, {}, keep=True)
    given = obtain(None, kept, {"BUILDER_API_KEY": "given"}, keep=True)
    assert given.api_key == "given"
    assert obtain(None, kept, {}, keep=True).api_key == "given"


def test_a_dry_run_keeps_nothing(tmp_path: Path) -> None:
    assert obtain(None, tmp_path / "keys" / "fp8", {}, keep=False).api_key
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_cannot_be_kept_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BuilderError, match="the API key cannot be kept"):
        obtain(None, tmp_path / "file" / "fp8", {}, keep=True)


def test_what_is_unfit_to_be_used_is_hidden_all_the_same(tmp_path: Path) -> None:
    key = secret_file(tmp_path / "key", "k3y\n", 0o644)
    assert to_hide(key, {"BUILDER_API_KEY": "other", "HF_TOKEN": "hf_two words "}) == Secrets("k3y", "hf_two words")
    assert to_hide(tmp_path / "none", {"BUILDER_API_KEY": "other", "HF_TOKEN": " "}) == Secrets("other", None)
    assert to_hide(secret_file(key, "\n"), {}).hide("as it is") == "as it is"


def test_a_key_to_hide_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{tmp_path}: the key to hide cannot be read: Is a directory"):
        to_hide(tmp_path, {})


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".fp8", "../../etc/shadow", "/etc/shadow", "a/b", "a\n", "a\0", "x" * 64]
)
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="is no deployment's name") as caught:
        kept("pct", name)
    assert "\n" not in str(caught.value)


def test_keys_differ() -> None:
    assert len({new_api_key() for _ in range(10)}) == 10
