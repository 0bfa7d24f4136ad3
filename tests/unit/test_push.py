"""A template to a folder, by the real rsync."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from builder.errors import BuilderError, UsageError
from builder.progress import Silent
from builder.push import Target, parse, push

pytestmark = pytest.mark.skipif(shutil.which("rsync") is None, reason="needs rsync")

SIZE = 3 << 20


@pytest.fixture
def made(tmp_path: Path) -> Callable[[str, bytes], Path]:
    """Makes what `builder build` leaves for a template of that version and those bytes."""

    def make(version: str, data: bytes) -> Path:
        folder = tmp_path / "artifacts"
        folder.mkdir(exist_ok=True)
        files = {"manifest.json": b"{}", "cdx.json": b"{}", "tar.zst": data}
        for suffix, content in files.items():
            (folder / f"demo_{version}_amd64.{suffix}").write_bytes(content)
        sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in folder.glob("demo*")]
        (folder / "SHA256SUMS").write_text("".join(sums))
        return folder / f"demo_{version}_amd64.tar.zst"

    return make


def noise(seed: int, size: int = SIZE) -> bytes:
    return random.Random(seed).randbytes(size)


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_another_version_sends_only_what_changed(made: Callable[[str, bytes], Path], tmp_path: Path) -> None:
    there = tmp_path / "there"
    data = noise(1)
    first = push(made("1", data), Target("", str(there)), Silent())
    assert (first.fresh, first.literal) == (True, SIZE + 4)
    changed = data[:1_000_000] + noise(2, 9_000) + data[1_000_000:]
    second = push(made("2", changed), Target("", str(there)), Silent())
    assert second.literal < SIZE // 100
    assert (there / "demo_2_amd64.tar.zst").read_bytes() == changed
    assert (there / "demo_1_amd64.tar.zst").read_bytes() == data
    assert names(there) == [f"demo_{n}_amd64.{end}" for n in "12" for end in ("cdx.json", "manifest.json", "tar.zst")]


def test_what_is_there_is_not_sent_again(made: Callable[[str, bytes], Path], tmp_path: Path) -> None:
    template, target = made("1", noise(1)), Target("", str(tmp_path / "there"))
    push(template, target, Silent())
    assert push(template, target, Silent()).fresh is False


def test_what_was_damaged_there_is_replaced(made: Callable[[str, bytes], Path], tmp_path: Path) -> None:
    template, there = made("1", noise(1)), tmp_path / "there"
    push(template, Target("", str(there)), Silent())
    with (there / template.name).open("r+b") as file:
        file.write(b"other")
    os.utime(there / template.name, ns=(0, template.stat().st_mtime_ns))  # size and time as they were
    assert push(template, Target("", str(there)), Silent()).fresh
    assert (there / template.name).read_bytes() == template.read_bytes()


def test_a_push_that_is_cut_short_leaves_no_half_template_and_goes_on(
    made: Callable[[str, bytes], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An rsync that dies with what it left in the hidden folder, then the real one."""
    template, there = made("1", noise(1)), tmp_path / "there"
    fake = tmp_path / "bin"
    fake.mkdir()
    rsync = fake / "rsync"
    rsync.write_text(
        f'#!/bin/sh\nfor to; do :; done\nmkdir -p "$to"\nhead -c 2000000 {template} >"$to/{template.name}"\nexit 20\n'
    )
    rsync.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{fake}:{os.environ['PATH']}")
        with pytest.raises(BuilderError, match="rsync: exit 20"):
            push(template, Target("", str(there)), Silent())
    assert not [name for name in names(there) if not name.startswith(".push-")]
    assert push(template, Target("", str(there)), Silent()).literal < SIZE // 2
    assert (there / template.name).read_bytes() == template.read_bytes()


def test_what_arrives_with_other_bytes_gets_no_name(
    made: Callable[[str, bytes], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template, there = made("1", noise(1)), tmp_path / "there"
    fake = tmp_path / "bin"
    fake.mkdir()
    rsync = fake / "rsync"
    rsync.write_text(
        f'#!/bin/sh\n{shutil.which("rsync")} "$@" || exit\nfor to; do :; done\necho more >>"$to/{template.name}"\n'
    )
    rsync.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake}:{os.environ['PATH']}")
    with pytest.raises(BuilderError, match=r"demo_1_amd64\.tar\.zst: FAILED"):
        push(template, Target("", str(there)), Silent())
    assert names(there) == []


def test_a_damaged_template_is_not_sent(made: Callable[[str, bytes], Path], tmp_path: Path) -> None:
    template = made("1", noise(1))
    with template.open("r+b") as file:
        file.write(b"other")
    with pytest.raises(BuilderError, match="not as SHA256SUMS"):
        push(template, Target("", str(tmp_path / "there")), Silent())
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize("end", ["manifest.json", "cdx.json"])
def test_what_lies_beside_it_is_not_sent_when_it_was_changed(
    made: Callable[[str, bytes], Path], tmp_path: Path, end: str
) -> None:
    template = made("1", noise(1))
    template.with_name(f"demo_1_amd64.{end}").write_text("[]")
    with pytest.raises(BuilderError, match=rf"demo_1_amd64\.{end}: is not as SHA256SUMS beside it says; build"):
        push(template, Target("", str(tmp_path / "there")), Silent())
    template.with_name("SHA256SUMS").unlink()
    with pytest.raises(BuilderError, match="is not in SHA256SUMS beside it; build"):
        push(template, Target("", str(tmp_path / "there")), Silent())
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize(
    ("text", "host", "folder"),
    [
        ("pve:/var/lib", "pve", "/var/lib"),
        ("root@pve:/a b", "root@pve", "/a b"),
        ("root@[fe80::1]:/x", "root@[fe80::1]", "/x"),
        ("pve:", "pve", "."),
        ("/mnt/a:b", "", "/mnt/a:b"),
    ],
)
def test_places(text: str, host: str, folder: str) -> None:
    assert parse(text) == Target(host, folder)


@pytest.mark.parametrize("text", ["", "-oProxyCommand=x:/y", "a@-b:/y", "host::module", "--rsh=x"])
def test_what_is_no_place(text: str) -> None:
    with pytest.raises(UsageError):
        parse(text)
