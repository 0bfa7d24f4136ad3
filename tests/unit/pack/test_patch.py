"""A template that is replaced is changed where it lies when nobody uses it, and comes out as if packed anew."""

from __future__ import annotations

import errno
import json
import mmap
import os
import random
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.errors import BuilderError
from builder.pack import Earlier, Layer, Packed, Stat, parts, patch, publish, segment, shift
from builder.pack.earlier import Reading, opened
from builder.pack.resumable import STEP, Sum
from builder.tree import scan
from tests.unit.pack.packing import EPOCH, INFO, make, pack_layers

Files = Mapping[str, tuple[int, int]]
"""Names of files, each with a number that its bytes are made from and how many these are."""

BASE: Files = {f"{number:02}": (number, 7_000 + 900 * number) for number in range(30)}
NAMES = sorted(BASE)


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of a few files each, so that a small tree has many."""
    monkeypatch.setattr(segment, "MEAN", 24 << 10)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder where files can be shifted."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as made:
        if not shift.works(Path(made), 4096):
            pytest.skip("the file system cannot shift")
        yield Path(made)


def grown(tree: Path, files: Files) -> Layer:
    """The layer of `files`, in a folder made anew."""
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    for name, (seed, size) in files.items():
        (tree / name).write_bytes(random.Random(seed).randbytes(size))
    for path in [*tree.rglob("*"), tree]:
        os.utime(path, (EPOCH, EPOCH))
    return Layer("base", scan(tree), tree)


def packed(folder: Path, files: Files, **options: Any) -> Packed:
    """`files` packed into `folder`/out, over what was packed there before."""
    return over(folder, grown(folder / "tree", files), **options)


def over(folder: Path, layer: Layer, **options: Any) -> Packed:
    return pack_layers([layer], folder / "out", previous=folder / "out/demo_1_amd64.tar.zst", **options)


def check(folder: Path, made: Packed) -> None:
    """Nothing lies in the folder but the template, byte by byte what packing it anew gives, and what describes it."""
    fresh = make([folder / "tree"], folder / "fresh")
    for one, other in zip(parts(made.path), parts(fresh.path), strict=True):
        assert one.read_bytes() == other.read_bytes()
    shutil.rmtree(folder / "fresh")
    assert made.sha256 == fresh.sha256
    assert len(os.listdir(folder / "out")) == 4
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=folder / "out", check=True)


def changed(number: int, by: int) -> Files:
    """The base with other bytes, so many more or less, in one of its files."""
    seed, size = BASE[NAMES[number]]
    return {**BASE, NAMES[number]: (seed + 1000, size + by)}


def without(*names: str) -> Files:
    return {name: BASE[name] for name in NAMES if name not in names}


CHANGES: Mapping[str, Files] = {
    "first": changed(0, 0),
    "middle grown": changed(15, 30_000),
    "middle shrunk": changed(15, -15_000),
    "last": changed(-1, 0),
    "last grown": changed(-1, 50_000),
    "last shrunk": changed(-1, -20_000),
    "two": {**changed(3, 9_000), "20": (5, 5)},
    "added first": {"0": (7, 20_000), **BASE},
    "added in the middle": {**BASE, "14x": (7, 20_000)},
    "added last": {**BASE, "x": (7, 20_000)},
    "removed first": without("00", "01", "02"),
    "removed in the middle": without("11", "12", "13", "14"),
    "removed last": without("27", "28", "29"),
    "moved about": {**without("02", "03"), "16x": (3, 12_000), "25": (9, 9_000)},
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_template_that_is_replaced_is_changed_where_it_lies(folder: Path, change: str) -> None:
    first = packed(folder, BASE)
    assert first.frames > 12
    before = first.path.stat().st_ino
    second = packed(folder, CHANGES[change])
    assert second.reused > second.frames // 2
    assert second.path.stat().st_ino == before
    check(folder, second)


file_changes = st.dictionaries(
    st.sampled_from([*NAMES, "0", "05x", "14x", "14y", "x", "y"]),
    st.none() | st.tuples(st.integers(0, 3), st.integers(0, 60_000)),
    max_size=4,
)


@settings(max_examples=40, deadline=None)
@given(changes=st.lists(file_changes, min_size=1, max_size=3))
def test_any_changes_one_after_the_other_give_what_packing_anew_gives(
    changes: list[dict[str, tuple[int, int] | None]],
) -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as made:
        folder = Path(made)
        files = dict(BASE)
        packed(folder, files)
        for each in changes:
            wanted = {**files, **each}
            files = {name: found for name, found in wanted.items() if found is not None}
            check(folder, packed(folder, files))


def test_when_only_its_description_changes_the_template_is_not_touched(folder: Path) -> None:
    first = packed(folder, BASE)
    before = first.path.stat()
    second = packed(folder, BASE, info=replace(INFO, recipe_digest="f" * 64))
    after = second.path.stat()
    assert (second.sha256, second.reused) == (first.sha256, first.frames)
    assert (after.st_ino, after.st_mtime_ns, after.st_ctime_ns) == (
        before.st_ino,
        before.st_mtime_ns,
        before.st_ctime_ns,
    )
    assert json.loads(parts(second.path)[1].read_text())["recipe_digest"] == "f" * 64
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=folder / "out", check=True)


def test_who_reads_the_old_template_keeps_it(folder: Path) -> None:
    first = packed(folder, BASE)
    old = first.path.read_bytes()
    with open(first.path, "rb") as reader:
        check(folder, packed(folder, CHANGES["middle grown"]))
        assert reader.read() == old


def test_who_has_the_old_template_mapped_keeps_it(folder: Path) -> None:
    first = packed(folder, BASE)
    old = first.path.read_bytes()
    with open(first.path, "rb") as reader:
        mapped = mmap.mmap(reader.fileno(), 0, prot=mmap.PROT_READ)
    with mapped:
        check(folder, packed(folder, CHANGES["middle grown"]))
        assert mapped[:] == old


def meanwhile(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], None]) -> None:
    """Let something happen to the earlier template after it was opened, and before it is found to be sound."""
    done: list[bool] = []
    real = Reading.is_sound

    def is_sound(self: Reading) -> bool:
        if not done:
            happens()
            done.append(True)
        return real(self)

    monkeypatch.setattr(Reading, "is_sound", is_sound)


def test_who_opens_the_old_template_while_the_new_one_is_made_keeps_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look whether it is in use and the change."""
    first = packed(folder, BASE)
    old = first.path.read_bytes()
    readers: list[IO[bytes]] = []
    meanwhile(monkeypatch, lambda: readers.append(open(first.path, "rb")))  # noqa: SIM115
    check(folder, packed(folder, CHANGES["middle grown"]))
    with readers[0] as reader:
        assert reader.read() == old


def as_it_is(template: Packed) -> Earlier:
    """What is told of a template, as if it had been made as it is now."""
    return replace(template.left, stat=Stat.of(template.path.stat()))


@pytest.mark.parametrize("when", ["before", "as it was made", "meanwhile"])
def test_another_name_of_the_old_template_keeps_it(folder: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    first = packed(folder, BASE)
    old, earlier = first.path.read_bytes(), first.left
    if when == "meanwhile":
        meanwhile(monkeypatch, lambda: os.link(first.path, folder / "kept"))
    else:
        os.link(first.path, folder / "kept")
        earlier = as_it_is(first) if when == "as it was made" else earlier
    second = pack_layers([grown(folder / "tree", CHANGES["middle grown"])], folder / "out", previous=earlier)
    check(folder, second)
    assert (folder / "kept").read_bytes() == old
    assert bool(second.reused) == (when != "before")


@pytest.mark.parametrize("version", ["1", "2"])
@pytest.mark.parametrize("place", [10, 100_000])
def test_what_is_written_to_the_old_template_meanwhile_is_not_taken(
    folder: Path, monkeypatch: pytest.MonkeyPatch, version: str, place: int
) -> None:
    first = packed(folder, BASE)

    def write() -> None:
        with first.path.open("r+b") as file:
            file.seek(place)
            file.write(b"something else")

    meanwhile(monkeypatch, write)
    layer = grown(folder / "tree", CHANGES["middle grown"])
    second = pack_layers([layer], folder / "out", previous=first.left, version=version)
    assert second.reused == 0
    assert sha256(second.path.read_bytes()).hexdigest() == second.sha256
    third = pack_layers([layer], folder / "out", previous=second.left, version=version)
    assert third.reused == third.frames


def test_what_is_written_to_a_template_as_soon_as_it_is_there_is_not_taken(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = publish.place

    def place(scratch: Path, dest: Path, template: str, *arguments: Any, **options: Any) -> None:
        real(scratch, dest, template, *arguments, **options)
        with (dest / template).open("r+b") as file:
            file.write(b"something else")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(publish, "place", place)
        first = packed(folder, BASE)
    assert first.left.stat != Stat.of(first.path.stat())
    second = over(folder, grown(folder / "tree", BASE))
    assert (second.sha256, second.reused) == (first.sha256, 0)
    check(folder, second)


def test_a_template_that_was_there_already_is_known_as_it_is(folder: Path) -> None:
    """As after a kill before the record was written: what is packed anew is the same and is not put in its place."""
    first = packed(folder, BASE)
    again = pack_layers([grown(folder / "tree", BASE)], folder / "out")
    assert again.left.stat == first.left.stat == Stat.of(first.path.stat())
    assert over(folder, grown(folder / "tree", CHANGES["last"])).reused > 0


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file away")
def test_the_template_of_another_user_is_left_to_them(folder: Path) -> None:
    first = packed(folder, BASE)
    os.chown(first.path, 1000, 1000)
    theirs = os.open(first.path, os.O_PATH)  # which does not count as a reader
    layer = grown(folder / "tree", CHANGES["middle grown"])
    second = pack_layers([layer], folder / "out", previous=as_it_is(first))
    assert os.fstat(theirs).st_nlink == 0
    os.close(theirs)
    assert second.path.stat().st_uid == 0
    check(folder, second)


def test_reading_on_ends_with_the_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "old").open("wb") as file:
        file.truncate(40 * STEP)
    earlier = Earlier(tmp_path / "old", Stat.of((tmp_path / "old").stat()), "", tuple(Sum().states), ())
    started, real = threading.Event(), os.preadv
    read: list[int] = []

    def preadv(descriptor: int, buffers: list[memoryview], start: int) -> int:
        read.append(start)
        started.set()
        return real(descriptor, buffers, start)

    monkeypatch.setattr(os, "preadv", preadv)
    with opened(earlier) as reading:
        assert reading is not None
        reading.until(0)
        assert started.wait(60)
    assert len(read) < 40


@pytest.mark.parametrize("put", ["a copy", "nothing"])
@pytest.mark.parametrize("change", ["middle grown", "none"])
def test_a_template_that_is_moved_away_meanwhile_stays_as_it_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch, put: str, change: str
) -> None:
    old = packed(folder, BASE).path
    kept, data = folder / "kept", old.read_bytes()

    def move() -> None:
        old.rename(kept)
        if put == "a copy":
            shutil.copy2(kept, old)

    meanwhile(monkeypatch, move)
    check(folder, packed(folder, BASE if change == "none" else CHANGES[change]))
    assert kept.read_bytes() == data


def test_a_link_to_a_template_elsewhere_is_replaced_and_not_followed(folder: Path) -> None:
    first = packed(folder, BASE)
    old = first.path.read_bytes()
    os.rename(first.path, folder / "kept")
    first.path.symlink_to(folder / "kept")
    check(folder, packed(folder, CHANGES["middle grown"]))
    assert (folder / "kept").read_bytes() == old


def test_who_opens_a_template_while_it_is_changed_waits_and_the_builder_lives(folder: Path) -> None:
    first = packed(folder, BASE)
    with opened(first.left) as reading:
        assert reading is not None
        with patch.alone(reading):
            with pytest.raises(BlockingIOError):
                os.open(first.path, os.O_RDONLY | os.O_NONBLOCK)
            with pytest.raises(BlockingIOError):  # had the kernel's signal its usual effect, this would not be reached
                os.open(first.path, os.O_RDONLY | os.O_NONBLOCK)
        os.close(os.open(first.path, os.O_RDONLY | os.O_NONBLOCK))


def test_where_files_cannot_be_shifted_they_are_copied(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        folder = Path(memory)
        if shift.works(folder, 4096):
            pytest.skip("a tmpfs that can shift files")
        packed(folder, BASE)
        second = packed(folder, CHANGES["middle grown"])
        assert second.reused > 0
        check(folder, second)


def state(folder: Path) -> object:
    """What lies in the folder: bytes, and what the kernel keeps of them."""
    found = {path.name: (path.read_bytes(), path.stat()) for path in folder.iterdir()}
    return {name: (data, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns) for name, (data, stat) in found.items()}


def test_a_damaged_layer_leaves_the_old_template_as_it_was(folder: Path) -> None:
    packed(folder, BASE)
    before = state(folder / "out")
    layer = grown(folder / "tree", CHANGES["two"])
    (layer.tree / "20").write_bytes(b"other")
    with pytest.raises(BuilderError, match="changed after it was captured"):
        over(folder, layer)
    assert state(folder / "out") == before


@pytest.mark.parametrize("place", [0, 100_000, -5])
def test_a_damaged_old_template_is_packed_anew(folder: Path, place: int) -> None:
    first = packed(folder, BASE)
    data = bytearray(first.path.read_bytes())
    data[place] ^= 1
    first.path.write_bytes(data)
    second = packed(folder, CHANGES["middle grown"])
    assert second.reused == 0
    check(folder, second)


STEPS = (
    *((os, name) for name in ("write", "ftruncate", "fsync", "rename", "replace", "unlink")),
    *((shift, name) for name in ("insert", "collapse")),
)
"""All calls that change something on disk."""


@contextmanager
def failing(number: int, fail: Callable[[], None]) -> Iterator[list[str]]:
    """Calls `fail` in place of the `number`th of `STEPS` calls; gives what was called before it."""
    called: list[str] = []

    def wrap(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            called.append(name)
            if len(called) == number:
                fail()
            return real(*arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patched:
        for module, name in STEPS:
            patched.setattr(module, name, wrap(name, getattr(module, name)))
        yield called


def nothing_wrong(out: Path) -> None:
    """What is listed is there and right, and a template that is there is the one that its manifest tells of."""
    if (out / "SHA256SUMS").exists():
        subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=out, check=True)
    template = out / "demo_1_amd64.tar.zst"
    if template.exists():
        told = json.loads(parts(template)[1].read_text())
        assert told["sha256"] == sha256(template.read_bytes()).hexdigest()


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("change", ["middle grown", "middle shrunk", "last grown", "first"])
def test_killed_at_any_step_nothing_wrong_is_left(folder: Path, change: str) -> None:
    number, status = 0, -1
    while status != 0:
        number += 1
        packed(folder, BASE)
        layer = grown(folder / "tree", CHANGES[change])
        child = os.fork()
        if child == 0:
            try:
                with failing(number, kill):
                    over(folder, layer)
                os._exit(0)
            finally:
                os._exit(3)
        status = os.waitpid(child, 0)[1]
        assert status in (0, signal.SIGKILL)
        nothing_wrong(folder / "out")
        check(folder, packed(folder, CHANGES[change]))
    assert number > 12


@pytest.mark.parametrize("change", ["middle grown", "middle shrunk", "last grown", "first"])
def test_a_full_disk_at_any_step_is_one_error_or_none(folder: Path, change: str) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    number, is_through = 0, False
    while not is_through:
        number += 1
        packed(folder, BASE)
        layer = grown(folder / "tree", CHANGES[change])
        before = state(folder / "out")
        said = ""
        with failing(number, full) as called:
            try:
                made = over(folder, layer)
            except BuilderError as error:
                said = str(error)
        if said:
            assert said.endswith("No space left on device; free some space or name another folder with --output")
            nothing_wrong(folder / "out")
            assert state(folder / "out") == before or {"rename", "replace", "unlink"} & set(called)
        else:
            is_through = len(called) < number
            check(folder, made)
        check(folder, packed(folder, CHANGES[change]))
    assert number > 12


def test_writes_that_take_less_than_they_are_given_are_gone_on_with(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed(folder, BASE)
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:1001]))
    check(folder, packed(folder, CHANGES["middle grown"]))
