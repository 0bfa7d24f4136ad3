"""Packing on a disk that has hardly room for the template."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from tests.unit.pack.packing import make, tree_of

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("no_leftovers")]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A new ext4 of 160 MiB."""
    image, place = tmp_path / "image", tmp_path / "disk"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(160 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def test_a_disk_that_gets_full_while_the_template_is_changed_takes_it_when_the_old_one_is_gone(
    disk: Path, tmp_path: Path
) -> None:
    """New frames lie on the disk twice for a moment; packed anew, the template needs less."""
    files = {f"opt/{number}": noise(number, 1 << 20) for number in range(60)}
    first = make([tree_of(tmp_path / "base", files)], disk / "out")
    status = os.statvfs(disk)
    free = status.f_bavail * status.f_frsize
    more = {f"opt/x{number}": noise(number + 100, free // 16) for number in range(11)}
    second = make([tree_of(tmp_path / "more", files | more)], disk / "out", previous=first.path)
    assert second.size > first.size + free // 2
    assert second.reused == 0
    assert sha256(second.path.read_bytes()).hexdigest() == second.sha256
    assert len(os.listdir(disk / "out")) == 4
