"""Listing, verifying and collecting, also beside builders that run."""

from __future__ import annotations

import fcntl
import io
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import FrameType

import pytest
from click.testing import CliRunner
from little import KINDS, Little

from builder.cli import cli
from builder.errors import BuilderError
from builder.progress import Silent
from builder.stage.kind import Context
from builder.store import Store, bundle, fetch, session, upkeep

from .conftest import Web, blob, files
from .test_store import KEY, make_layer

DAY = 86400


def age(path: Path, days: float) -> None:
    then = time.time() - days * DAY
    os.utime(path, (then, then))


@pytest.fixture
def filled(store: Store) -> Store:
    """Three blobs of 100 bytes, 1, 2 and 3 days old, and a layer 4 days old; nobody uses it now."""
    for days in (1, 2, 3):
        age(store.path(store.add_stream([bytes([days]) * 100])), days)
    age(make_layer(store, content="x" * 1000).tree.parent / "meta.json", 4)
    store.close()
    return Store(store.root)


def removed(done: upkeep.Collected) -> list[tuple[str, int]]:
    return [(item.kind, item.size) for item in done.removed]


def test_ls_counts_everything(filled: Store) -> None:
    assert sorted((item.kind, item.size) for item in upkeep.ls(filled)) == [("blob", 100)] * 3 + [("layer", 1000)]


def test_an_empty_or_missing_store_is_fine(store: Store) -> None:
    assert upkeep.ls(store) == []
    assert upkeep.verify(store) == []
    assert upkeep.gc(store, older_than=0, max_size=0).removed == ()


def test_by_age(filled: Store) -> None:
    done = upkeep.gc(filled, older_than=2.5 * DAY, max_size=None)
    assert removed(done) == [("layer", 1000), ("blob", 100)]
    assert (done.kept, done.kept_size, done.size) == (2, 200, 1100)
    assert [item.kind for item in upkeep.ls(filled)] == ["blob", "blob"]
    assert sorted(path.name for path in (filled.root / "tmp").iterdir()) == ["partial"]


def test_by_size_the_least_recently_used_go_first(filled: Store) -> None:
    assert removed(upkeep.gc(filled, older_than=None, max_size=150)) == [("layer", 1000), ("blob", 100), ("blob", 100)]


def test_a_dry_run_removes_nothing(filled: Store) -> None:
    before = files(filled)
    assert len(upkeep.gc(filled, older_than=None, max_size=0, dry_run=True).removed) == 4
    assert files(filled) == before


def test_use_renews(filled: Store) -> None:
    assert filled.has(blob(bytes([3]) * 100))
    assert filled.layer(KEY) is not None
    filled.close()
    done = upkeep.gc(Store(filled.root), older_than=1.5 * DAY, max_size=None)
    assert removed(done) == [("blob", 100)]


def test_what_a_running_builder_has_used_is_kept(filled: Store) -> None:
    layer = filled.layer(KEY)
    assert layer is not None
    done = upkeep.gc(Store(filled.root), older_than=0, max_size=0)
    assert removed(done) == [("blob", 100)] * 3
    assert (done.kept, done.in_use) == (1, 1)
    assert layer.changed() == []


def test_room_is_made_from_what_is_not_in_use(filled: Store) -> None:
    assert filled.has(blob(bytes([3]) * 100))
    done = upkeep.gc(Store(filled.root), older_than=None, max_size=200)
    assert removed(done) == [("layer", 1000), ("blob", 100)]


def test_what_a_killed_builder_used_may_go(filled: Store) -> None:
    code = """if True:
        import os, signal, sys
        from pathlib import Path
        from builder.store import Store
        assert Store(Path(sys.argv[1])).layer(sys.argv[2])
        os.kill(os.getpid(), signal.SIGKILL)
    """
    assert subprocess.run([sys.executable, "-c", code, str(filled.root), KEY], check=False).returncode == -9
    assert len(upkeep.gc(filled, older_than=None, max_size=0).removed) == 4
    assert sorted(path.name for path in (filled.root / "tmp").iterdir()) == ["partial"]


def test_old_partial_downloads_go_and_running_ones_stay(filled: Store) -> None:
    for name in ("a" * 64, "b" * 64):
        (filled.root / "tmp/partial" / name).write_bytes(b"x")
        age(filled.root / "tmp/partial" / name, 40)
    with open(filled.root / "tmp/partial" / ("b" * 64), "rb+") as running:
        fcntl.flock(running, fcntl.LOCK_EX)
        done = upkeep.gc(filled, older_than=30 * DAY, max_size=None)
    assert [(item.kind, item.name) for item in done.removed] == [("partial", "a" * 64)]


CHILD = """
import sys
from pathlib import Path
from builder.lock.model import Blob
from builder.store import Store, fetch, upkeep
root, sha256, size, url = sys.argv[1:]
wanted = Blob(sha256, int(size), "file", (url,))
for _ in range(60):
    store = Store(Path(root))
    if not store.has(wanted):
        fetch(store, [wanted])
    assert store.path(sha256).stat().st_size == int(size)
    store.close()
"""


def test_collecting_beside_builders_never_takes_what_they_use(store: Store, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x" * 1000)
    wanted = blob(b"x" * 1000, (tmp_path / "source").as_uri())
    argv = [sys.executable, "-c", CHILD, str(store.root), wanted.sha256, str(wanted.size), wanted.urls[0]]
    with subprocess.Popen(argv) as one, subprocess.Popen(argv) as two:
        collected = 0
        while one.poll() is None or two.poll() is None:
            collected += len(upkeep.gc(store, older_than=None, max_size=0).removed)
    assert (one.returncode, two.returncode) == (0, 0)
    assert collected


def test_collecting_in_a_stage_leaves_to_the_later_ones_what_they_need(tmp_path: Path) -> None:
    """`builder build` of what an earlier `builder fetch` brought in."""
    expected = fetched(Little(tmp_path / "undisturbed")).build

    def base_with_gc(context: Context) -> None:
        KINDS["base"].build(context)
        collected.append(upkeep.gc(little.store, older_than=0, max_size=0))

    collected: list[upkeep.Collected] = []
    kinds = {**KINDS, "base": replace(KINDS["base"], build=base_with_gc)}
    little = fetched(Little(tmp_path / "little", kinds))
    unused = little.store.add_stream([b"unused"])
    assert little.build(little.store).sha256 == expected(Store(tmp_path / "undisturbed/store")).sha256
    assert [[item.name for item in done.removed] for done in collected] == [[unused]]


def fetched(little: Little) -> Little:
    little.folder.mkdir()
    little.fetch(little.store)
    return little


def test_collecting_between_any_two_steps_of_a_builder(tmp_path: Path) -> None:
    """Whatever function of store or build comes next, gc is first: what `builder template` does goes on unharmed."""
    little, other = Little(tmp_path), Store(tmp_path / "store")
    counts = {"runs": 0, "removed": 0}

    def collect(frame: FrameType, event: str, arg: object) -> None:
        module = frame.f_globals.get("__name__", "")
        if event != "call" or not module.startswith(("builder.store", "builder.build")):
            return
        sys.setprofile(None)
        try:
            with session.locked(other.root, fcntl.LOCK_EX | fcntl.LOCK_NB):
                pass
            counts["runs"] += 1
            counts["removed"] += len(upkeep.gc(other, older_than=0, max_size=0).removed)
        except BlockingIOError:  # this very builder holds the lock, and gc would wait
            pass
        finally:
            sys.setprofile(collect)

    made = []
    other.folder()
    for _ in range(2):
        store = little.store
        sys.setprofile(collect)
        try:
            little.fetch(store)
            made.append(little.build(store).sha256)
        finally:
            sys.setprofile(None)
        assert all(store.has(blob) for blob in little.blobs)
        assert len(list(store.layers())) == 2
        assert upkeep.verify(store) == []
        store.close()
    assert made[0] == made[1]
    assert counts["runs"] > 100
    assert counts["removed"] > 0


def test_verify_names_and_removes_what_is_damaged(filled: Store, web: Web) -> None:
    good = blob(bytes([1]) * 100)
    bad = blob(bytes([2]) * 100, web.put("b", bytes([2]) * 100))
    filled.path(bad.sha256).chmod(0o644)
    filled.path(bad.sha256).write_bytes(bytes([7]) * 100)
    layer = filled.layer(KEY)
    assert layer is not None
    file = layer.tree / "etc/file"
    status = file.stat()
    file.write_text("y" * 1000)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    found = upkeep.verify(filled)
    assert [(damage.kind, damage.name, damage.what) for damage in found] == [
        ("blob", bad.sha256, f"has sha256 {blob(bytes([7]) * 100).sha256}"),
        ("layer", KEY, "1 member differs, first 'etc/file'"),
    ]
    assert filled.layer(KEY) is None
    assert upkeep.verify(filled) == []
    assert filled.has(good)
    assert fetch(filled, [good, bad]).fetched == 1


def test_with_a_damaged_layer_go_those_above_it(tmp_path: Path) -> None:
    """What they were made of may have been damaged already."""
    little = Little(tmp_path)
    store = little.store
    little.fetch(store)
    little.build(store)
    (next(store.root.glob("layers/*/*/tree/etc/empty"))).write_text("damaged")
    other = make_layer(store)
    assert [damage.what for damage in upkeep.verify(store)] == [
        "1 member differs, first 'etc/empty'",
        "was made over a damaged layer",
    ]
    assert [layer.key for layer in store.layers()] == [other.key]


def test_verify_removes_what_has_no_name(filled: Store) -> None:
    (filled.root / "blobs/sha256/zz").mkdir()
    (filled.root / "blobs/sha256/zz/stray").touch()
    assert [damage.name for damage in upkeep.verify(filled)] == ["stray"]


def test_many_blobs_are_quick(store: Store) -> None:
    content = store.folder("blobs", "sha256")
    for number in range(256):
        folder = content / f"{number:02x}"
        folder.mkdir()
        first = folder / f"{number:02x}{'0' * 62}"
        first.touch()
        for other in range(1, 100):
            os.link(first, folder / f"{number:02x}{other:062x}")
    started = time.process_time()
    assert len(upkeep.ls(store)) == 25_600
    assert upkeep.gc(store, older_than=30 * DAY, max_size=None).removed == ()
    assert time.process_time() - started < 20


@pytest.fixture
def command(filled: Store, monkeypatch: pytest.MonkeyPatch):
    """Run `builder store ...` on the filled store, as the user that runs the tests."""
    monkeypatch.setattr("builder.commands.store.become_root", lambda: None)
    monkeypatch.setenv("BUILDER_STORE", str(filled.root))
    return lambda *words: CliRunner().invoke(cli, ["store", *words], standalone_mode=False, catch_exceptions=False)


def test_the_command_ls(command) -> None:
    out = command("ls").output
    assert f"{KEY[:12]}  tiny    base" in out
    assert "4 d ago" in out
    assert "3 blobs, 300 B\n1 layer, 1000 B\n" in out
    found = json.loads(command("ls", "--json").stdout)
    assert found["sums"]["blob"] == {"count": 3, "size": 300}
    assert [(layer["key"], layer["recipe"], layer["stage"]) for layer in found["layers"]] == [(KEY, "tiny", "base")]


def test_the_command_verify(command, filled: Store) -> None:
    assert command("verify").return_value == 0
    bad = filled.path(blob(bytes([2]) * 100).sha256)
    bad.chmod(0o644)
    bad.write_bytes(b"")
    result = command("verify")
    assert f"blob {bad.name} has sha256 e3b0c442" in result.output
    assert result.return_value == 1
    assert json.loads(command("verify", "--json").stdout) == {"damaged": []}


def test_no_store_is_not_a_sound_one(command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BUILDER_STORE", str(tmp_path / "nowhere"))
    with pytest.raises(BuilderError, match="nowhere: there is no store"):
        command("verify")
    assert not (tmp_path / "nowhere").exists()


def test_an_archive_that_was_cut_short_ends_with_status_1(
    command, filled: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = io.BytesIO()
    held = [blob(bytes([number]) * 100, name=f"file-{number}") for number in (1, 2, 3)]
    bundle.write(filled, held, [], whole, Silent())
    (tmp_path / "whole.tar").write_bytes(whole.getvalue())
    (tmp_path / "half.tar").write_bytes(whole.getvalue()[:2600])
    monkeypatch.setenv("BUILDER_STORE", str(tmp_path / "other"))
    done = command("import", str(tmp_path / "half.tar"))
    assert done.return_value == 1
    assert "file-3 is missing: the archive is damaged or cut short: left out" in done.stderr
    told = command("import", str(tmp_path / "half.tar"), "--json")
    assert told.return_value == 1
    assert json.loads(told.stdout)["left_out"]
    assert command("import", str(tmp_path / "whole.tar")).return_value == 0


def test_the_command_gc(command) -> None:
    assert command("gc").output.startswith("removed nothing, 0 B; 1.3 KiB kept")
    assert "would remove 1 blob, 1 layer, 1.1 KiB" in command("gc", "--older-than", "60h", "--dry-run").output
    assert "removed 3 blobs, 1 layer" in command("gc", "--max-size", "0").output
    done = json.loads(command("gc", "--max-size", "1G", "--json").stdout)
    assert (done["removed"], done["kept"]["count"]) == ([], 0)


@pytest.mark.parametrize("words", [("--max-size", "1x"), ("--older-than", "a"), ("--older-than", "-1d")])
def test_a_wrong_amount_is_refused(command, words: tuple[str, str]) -> None:
    import click

    with pytest.raises(click.UsageError, match="is not a"):
        command("gc", *words)
