"""A thousand random flips of one bit in a store and its template: named, or without effect; never a wrong template."""

from __future__ import annotations

import os
import random
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from little import Little, Said

from builder.errors import BuilderError
from builder.store import upkeep
from builder.tree import Entry, Index
from builder.tree.index import STAT

FLIPS = 1000


@dataclass(frozen=True)
class Place:
    """Where bits are flipped, and whether `store verify`, or the next use, must name what was hit."""

    find: Callable[[Little, random.Random], Path]
    flip: Callable[[Path, random.Random], Path | None]  # where it lies then, if that changed
    named: bool = False


def bits(path: Path, chance: random.Random) -> None:
    """Flip one bit of a file; its mode and times stay."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.chmod(0o600)
    path.write_bytes(data)
    path.chmod(stat.S_IMODE(before.st_mode))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def mode(path: Path, chance: random.Random) -> None:
    path.chmod(stat.S_IMODE(path.stat().st_mode) ^ 1 << chance.choice((0, 1, 3, 4, 5, 9, 10, 11)))


def mtime(path: Path, chance: random.Random) -> None:
    seconds = int(path.lstat().st_mtime) ^ 1 << chance.randrange(31)
    os.utime(path, (seconds, seconds), follow_symlinks=False)


def target(path: Path, chance: random.Random) -> None:
    text = bytearray(os.fsencode(os.readlink(path)))
    text[chance.randrange(len(text))] ^= 1 << chance.randrange(7)
    now = path.lstat(), path.parent.stat()
    path.unlink()
    os.symlink(bytes(text).replace(b"\0", b"x"), path)
    for place, before in zip((path, path.parent), now, strict=True):
        os.utime(place, ns=(before.st_atime_ns, before.st_mtime_ns), follow_symlinks=False)


def attribute(path: Path, chance: random.Random) -> None:
    value = bytearray(os.getxattr(path, "user.origin"))
    value[chance.randrange(len(value))] ^= 1 << chance.randrange(8)
    os.setxattr(path, "user.origin", value)


def name(path: Path, chance: random.Random) -> Path:
    letters = list(path.name)
    at = chance.randrange(len(letters))
    letters[at] = chr(ord(letters[at]) ^ 1 << chance.randrange(3))
    return path.rename(path.with_name("".join(letters)))


def anywhere(pattern: str, fits: Callable[[Path], bool] = Path.is_file) -> Callable[[Little, random.Random], Path]:
    """One of the paths in the little project that match."""
    return lambda little, chance: chance.choice(sorted(path for path in little.folder.glob(pattern) if fits(path)))


def is_full(path: Path) -> bool:
    return stat.S_ISREG(path.lstat().st_mode) and path.stat().st_size > 0


def may_have_a_mode(path: Path) -> bool:
    return not path.is_symlink() and not stat.S_ISCHR(path.lstat().st_mode)


MEMBERS = "store/layers/*/*/tree/**/*"
PLACES = {
    "blob": Place(anywhere("store/blobs/sha256/*/*"), bits, named=True),
    "blob's name": Place(anywhere("store/blobs/sha256/*/*"), name, named=True),
    "layer's key": Place(anywhere("store/layers/*/*", Path.is_dir), name, named=True),
    "file": Place(anywhere(MEMBERS, is_full), bits, named=True),
    "mode": Place(anywhere(MEMBERS, may_have_a_mode), mode, named=True),
    "mtime": Place(anywhere(MEMBERS, may_have_a_mode), mtime, named=True),
    "link": Place(anywhere(MEMBERS, Path.is_symlink), target, named=True),
    "attribute": Place(anywhere("store/layers/*/*/tree/usr/lib/setuid"), attribute, named=True),
    "index": Place(anywhere("store/layers/*/*/index"), bits),
    "meta.json": Place(anywhere("store/layers/*/*/meta.json"), bits),
    "record": Place(anywhere("store/outputs/*"), bits),
    "last": Place(anywhere("store/last/*/*"), bits),
    "template": Place(anywhere("artifacts/*.tar.zst"), bits),
    "manifest": Place(anywhere("artifacts/*.manifest.json"), bits),
    "bill": Place(anywhere("artifacts/*.cdx.json"), bits),
    "sums": Place(anywhere("artifacts/SHA256SUMS"), bits),
}
"""Of the last eight a flip is allowed to go unnamed where nothing comes of it."""

ROTS = ("file", "mode", "mtime", "link", "attribute")
"""What a disk may change by itself, so that stat data tells nothing."""


def conceal(path: Path) -> None:
    """Make the index of the layer that `path` is in agree with the stat data of its files as they are now."""
    while path.name != "tree":
        path = path.parent
    index = Index.load(path.parent / "index")
    found = [(path / entry.path).lstat() for entry in index.entries]
    stats = [STAT.pack(now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino) for now in found]
    Index(index.entries, index.digest, b"".join(stats)).save(path.parent / "index")


def whose(path: Path) -> str:
    """What a message calls the thing that the path is, or is in."""
    found = re.search(r"/layers/[^/]+/([^/]+)|/([^/]+)$", str(path))
    assert found is not None
    return (found[1] or found[2])[:12]


@pytest.fixture
def little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Little:
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # nothing here is about power cuts
    return Little(tmp_path)


def test_a_thousand_flipped_bits(little: Little) -> None:
    chance = random.Random(20)
    little.fetch(little.store)
    expected = {path.name: path.read_bytes() for path in little.build(little.store).path.parent.iterdir()}
    for number in range(FLIPS):
        kind = chance.choice(list(PLACES))
        place = PLACES[kind]
        path = place.find(little, chance)
        said = Said()
        path = place.flip(path, chance) or path
        if kind in ROTS and chance.random() < 0.5:
            conceal(path)
        if chance.random() < 0.5:
            next(little.artifacts.glob("*.zst")).unlink()  # so that layers are read
        try:
            little.build(little.store, said)
            assert {path.name: path.read_bytes() for path in little.artifacts.iterdir()} == expected, (number, kind)
        except BuilderError as error:
            said.say(str(error))
        damages = upkeep.verify(little.store)
        told = "\n".join([*said.lines, *(f"{damage.name} {damage.what}" for damage in damages)])
        assert not any("\n" in line for line in said.lines)
        assert not place.named or whose(path) in told, (number, kind, path, told)
        little.fetch(little.store)
        little.build(little.store)
        assert {path.name: path.read_bytes() for path in little.artifacts.iterdir()} == expected, (number, kind)
        if number % 20 == 0:
            assert upkeep.verify(little.store) == [], (number, kind)


def test_every_bit_of_a_small_index(tmp_path: Path) -> None:
    """Its zstd header, where a flip may ask for memory without end, is a large part of it."""
    index = Index.of([Entry("", "dir")], bytes(STAT.size))
    index.save(tmp_path / "index")
    good = (tmp_path / "index").read_bytes()
    refused = 0
    for number in range(8 * len(good)):
        bad = bytearray(good)
        bad[number // 8] ^= 1 << number % 8
        (tmp_path / "index").write_bytes(bad)
        try:
            assert Index.load(tmp_path / "index") == index, number
        except BuilderError:
            refused += 1
    assert refused > 7 * len(good)
