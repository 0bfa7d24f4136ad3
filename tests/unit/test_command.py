"""Folders for commands, whose own children may outlive them."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from builder.command import new_folder


def test_a_folder_in_which_somebody_still_writes_goes_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    remove, late = shutil.rmtree, iter([True, True])

    def rmtree(path: Path) -> None:
        if next(late, False):
            raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))
        remove(path)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    with new_folder("builder-test-") as folder:
        (folder / "file").touch()
    assert not folder.exists()


def test_a_folder_that_stays_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    folders: list[Path] = []

    def rmtree(path: Path) -> None:
        folders.append(path)
        raise OSError(errno.EBUSY, "busy", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", rmtree)
        with pytest.raises(OSError, match="busy"), new_folder("builder-test-", patience=0.01):
            pass
    shutil.rmtree(folders[0])
