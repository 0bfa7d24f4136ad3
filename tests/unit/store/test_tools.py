"""The builder's own tools: what is locked, and what comes of it."""

from __future__ import annotations

import os
import re
import subprocess
import zipfile
from pathlib import Path

import pytest

from builder.errors import BuilderError
from builder.lock.model import Blob
from builder.store import Store, fetch, tools

from .conftest import blob

HOUSE = Path(__file__).parents[3]
PROGRAM = "tool-1.data/scripts/tool"


def test_every_tool_is_locked_by_hash_on_the_public_index() -> None:
    for wheel in tools.tool_blobs():
        assert re.fullmatch(r"[0-9a-f]{64}", wheel.sha256)
        assert wheel.size > 0
        assert wheel.filename.endswith(".whl")
        assert wheel.urls[0].startswith("https://files.pythonhosted.org/packages/")


def test_the_names_choose() -> None:
    assert [wheel.filename.split("-")[0] for wheel in tools.tool_blobs("uv")] == ["uv"]
    assert set(tools.tool_blobs("uv", "pip-tools")) == set(tools.tool_blobs())


def test_tools_are_those_that_the_builder_itself_is_installed_with() -> None:
    installed = dict(re.findall(r"(?m)^([a-z0-9-]+)==(\S+)", (HOUSE / "locks/builder.txt").read_text()))
    for wheel in tools.tool_blobs():
        name, version = wheel.filename.split("-")[:2]
        if (name := name.replace("_", "-")) in installed:
            assert version == installed[name], name


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Blob:
    """A wheel with one program, in place of the real tools."""
    path = tmp_path / "tool-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo(PROGRAM)
        info.external_attr = 0o100755 << 16
        archive.writestr(info, "#!/bin/sh\necho ran\n")
        archive.writestr("tool/__init__.py", "")
    made = blob(path.read_bytes(), path.as_uri(), name=path.name)
    found = {"tool": tools._Tool((made,), PROGRAM), "package": tools._Tool((made,), "")}
    monkeypatch.setattr(tools, "_tools", lambda: found)
    return made


def test_a_tool_is_unpacked_once_and_runs(store: Store, wheel: Blob) -> None:
    fetch(store, [wheel])
    program = tools.tool(store, "tool")
    inode = program.stat().st_ino
    assert subprocess.run([program], capture_output=True, check=True).stdout == b"ran\n"
    assert tools.tool(Store(store.root), "tool").stat().st_ino == inode


def test_a_set_of_packages_is_a_folder(store: Store, wheel: Blob) -> None:
    fetch(store, [wheel])
    assert (tools.tool(store, "package") / "tool/__init__.py").is_file()


def test_a_tool_that_was_changed_is_unpacked_anew(store: Store, wheel: Blob) -> None:
    fetch(store, [wheel])
    program = tools.tool(store, "tool")
    status = program.stat()
    program.write_text("#!/bin/sh\necho bad\n")
    os.utime(program, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert tools.tool(store, "tool") == program
    assert "echo ran" in program.read_text()


def test_a_missing_or_damaged_wheel_is_named(store: Store, wheel: Blob) -> None:
    with pytest.raises(BuilderError, match=r"tool tool: tool-1-py3-none-any\.whl is not in the store; run `builder fe"):
        tools.tool(store, "tool")
    fetch(store, [wheel])
    store.path(wheel.sha256).chmod(0o644)
    store.path(wheel.sha256).write_bytes(b"x" * wheel.size)
    with pytest.raises(BuilderError, match="is not in the store"):
        tools.tool(store, "tool")
    assert not (store.root / "tools" / store.idmap).exists()
