"""Blobs and layers: names only for what is whole, and no trace of what is not."""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder import canonical, tree
from builder.errors import BuilderError
from builder.lock.model import Blob
from builder.store import Layer, Store, default_root, fetch
from builder.tree import Index

from .conftest import blob, files

FACTS = {"recipe": "tiny", "stage": "base", "kind": "debian", "body": {"packages": ["systemd"]}, "over": []}
KEY = canonical.digest(FACTS["body"])


def make_layer(store: Store, content: str = "text") -> Layer:
    with store.draft(KEY) as draft:
        (draft.upper / "etc").mkdir()
        (draft.upper / "etc/file").write_text(content)
        return draft.commit(tree.scan(draft.upper), FACTS)


@pytest.mark.parametrize(
    ("env", "root"),
    [
        ({"BUILDER_STORE": "/a/b", "XDG_CACHE_HOME": "/c"}, "/a/b"),
        ({"BUILDER_STORE": "~/b"}, "/home/me/b"),
        ({"BUILDER_STORE": "", "XDG_CACHE_HOME": "/c"}, "/c/builder"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/me/.cache/builder"),
        ({}, "/home/me/.cache/builder"),
    ],
)
def test_where_the_store_is(monkeypatch: pytest.MonkeyPatch, env: dict[str, str], root: str) -> None:
    for name in ("BUILDER_STORE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **env}.items():
        monkeypatch.setenv(name, value)
    assert str(default_root()) == root


def test_a_store_that_nobody_used_is_not_made(store: Store) -> None:
    assert not store.root.exists()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=5))
def test_a_stream_is_known_by_its_hash(tmp_path_factory: pytest.TempPathFactory, parts: list[bytes]) -> None:
    store = Store(tmp_path_factory.mktemp("store"))
    name = store.add_stream(parts)
    content = b"".join(parts)
    assert name == hashlib.sha256(content).hexdigest()
    assert store.path(name).read_bytes() == content
    assert store.has(blob(content))
    assert store.sound(blob(content))


def test_a_file_with_another_hash_is_not_stored(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(BuilderError, match=f"{tmp_path}/file: expected sha256 {'0' * 64}, got 2d711642b726b044"):
        store.add(tmp_path / "file", "0" * 64)
    assert files(store) == []
    assert store.add(tmp_path / "file").startswith("2d711642")


def test_a_missing_source_is_named(store: Store, tmp_path: Path) -> None:
    with pytest.raises(BuilderError, match=f"{tmp_path}/gone: No such file"):
        store.add(tmp_path / "gone")


def test_a_blob_of_another_size_is_not_had(store: Store) -> None:
    name = store.add_stream([b"four"])
    assert not store.has(Blob(name, 5, "f", ()))
    assert not store.has(Blob("0" * 64, 4, "f", ()))


def test_a_damaged_blob_is_not_sound_and_goes(store: Store) -> None:
    wanted = blob(b"four")
    store.add_stream([b"four"])
    store.path(wanted.sha256).chmod(0o644)
    store.path(wanted.sha256).write_bytes(b"five")
    assert not store.sound(wanted)
    assert not store.path(wanted.sha256).exists()
    assert not store.sound(wanted)


def test_a_layer_is_what_was_committed(store: Store) -> None:
    made = make_layer(store)
    found = Store(store.root).layer(KEY)
    assert found == made
    assert (made.digest, made.size, made.files) == (made.index.digest, 4, 1)
    assert made.facts == FACTS
    assert (made.tree / "etc/file").read_text() == "text"
    assert made.tree == store.root / "layers" / store.idmap / KEY / "tree"
    assert made.changed() == []


def test_the_root_of_a_layer_does_not_depend_on_the_umask(store: Store) -> None:
    before = os.umask(0o077)
    try:
        layer = make_layer(store)
    finally:
        os.umask(before)
    assert layer.tree.stat().st_mode & 0o7777 == 0o755


def test_a_draft_that_is_not_committed_leaves_nothing(store: Store) -> None:
    with store.draft(KEY) as draft:
        locked = draft.upper / "locked"
        locked.mkdir()
        (locked / "file").touch()
        locked.chmod(0)
        devices = {folder.stat().st_dev for folder in (draft.upper, draft.work, draft.scratch, store.root)}
    assert len(devices) == 1
    assert store.layer(KEY) is None
    assert files(store) == []
    assert not draft.upper.exists()


def test_the_second_builder_of_a_key_takes_the_layer_of_the_first(store: Store) -> None:
    other = Store(store.root)
    with store.draft(KEY) as draft:
        (draft.upper / "mine").touch()
        first = make_layer(other)
        second = draft.commit(tree.scan(draft.upper), FACTS)
    assert second == first
    assert not (second.tree / "mine").exists()
    assert len(list((store.root / "layers" / store.idmap).iterdir())) == 1


def test_after_a_reboot_the_bytes_of_a_layer_are_read_once(store: Store) -> None:
    layer = make_layer(store)
    file, mark = layer.tree / "etc/file", layer.tree.parent / "unsynced"
    index = layer.index

    def found() -> Layer:
        again = store.layer(KEY)
        assert again is not None
        return again

    file.write_text("\0\0\0\0")  # what a power cut may leave; the index takes over the stat data below
    Index(index.entries, index.digest, tree.scan(layer.tree).stats).save(layer.tree.parent / "index")
    assert found().changed() == []
    mark.write_bytes(b"\xff another boot")
    assert found().changed() == ["etc/file"]
    file.write_text("text")
    Index(index.entries, index.digest, tree.scan(layer.tree).stats).save(layer.tree.parent / "index")
    assert found().changed() == []
    assert not mark.exists()


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"format": 99}'])
def test_an_unreadable_layer_is_none_and_can_be_made_again(store: Store, damage: str) -> None:
    layer = make_layer(store)
    (layer.tree.parent / "meta.json").write_text(damage)
    assert store.layer(KEY) is None
    assert make_layer(store).changed() == []


def test_a_layer_without_its_last_file_gives_way(store: Store) -> None:
    layer = make_layer(store)
    (layer.tree.parent / "meta.json").unlink()
    assert store.layer(KEY) is None
    assert list(store.layers()) == []
    assert make_layer(store, content="new").tree.joinpath("etc/file").read_text() == "new"


def rewrite(layer: Layer, old: str, new: str) -> None:
    path = layer.tree.parent / "meta.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda layer: (layer.tree / "etc/file").write_text("TEXT"), ["etc/file"]),
        (lambda layer: (layer.tree / "etc/new").touch(), ["etc"]),
        (lambda layer: (layer.tree / "etc/file").unlink(), ["etc", "etc/file"]),
        (lambda layer: (layer.tree.parent / "index").write_bytes(b"x"), ["index"]),
        (lambda layer: (layer.tree.parent / "index").unlink(), ["index"]),
        (lambda layer: rewrite(layer, f'"digest": "{layer.digest}"', f'"digest": "{"0" * 64}"'), ["meta.json"]),
        (lambda layer: rewrite(layer, '"size": 4', '"size": 5'), ["meta.json"]),
        (lambda layer: rewrite(layer, '"files": 1', '"files": 3'), ["meta.json"]),
        (lambda layer: rewrite(layer, "systemd", "systeme"), ["meta.json"]),
        (lambda layer: rewrite(layer, '"systemd"', "1.5"), ["meta.json"]),
        (lambda layer: rewrite(layer, '"stage"', '"stagf"'), ["meta.json"]),
    ],
)
def test_a_changed_layer_says_what_changed(store: Store, damage: Callable[[Layer], object], named: list[str]) -> None:
    damage(make_layer(store))
    layer = store.layer(KEY)
    assert layer is not None
    assert layer.changed() == named
    store.drop_layer(layer)
    assert store.layer(KEY) is None
    assert files(store) == []


def test_texts_are_replaced_whole(store: Store) -> None:
    for text in ("one", "two"):
        store.write_text(Path("last/recipe/stage.json"), text)
        assert (store.root / "last/recipe/stage.json").read_text() == text
    assert files(store) == ["last/recipe/stage.json"]


def test_scratch_is_removed_with_folders_that_nobody_may_write(store: Store) -> None:
    with store.scratch() as scratch:
        (scratch / "a/b").mkdir(parents=True)
        (scratch / "a/b/file").touch()
        (scratch / "a/b").chmod(0o500)
        (scratch / "a").chmod(0o000)
    assert not scratch.exists()


def test_an_ended_builder_leaves_no_folder(store: Store) -> None:
    code = "import sys; from pathlib import Path; from builder.store import Store; Store(Path(sys.argv[1])).layer('k')"
    subprocess.run([sys.executable, "-c", code, str(store.root)], check=True)
    assert sorted(path.name for path in (store.root / "tmp").iterdir()) == ["partial"]


def test_an_end_is_not_cut_short_by_impatience(store: Store) -> None:
    """Signals that come while the session's folder is removed: it goes, without a traceback."""
    code = """if True:
        import os, signal, sys
        from pathlib import Path
        from builder.store import Store, session
        remove = session.remove_tree
        def interrupted(folder):
            os.kill(os.getpid(), signal.SIGINT)
            remove(folder)
            os.kill(os.getpid(), signal.SIGTERM)
        session.remove_tree = interrupted
        Store(Path(sys.argv[1])).layer("k")
        print("still here")
    """
    done = subprocess.run([sys.executable, "-c", code, str(store.root)], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"still here\n", b"")
    assert sorted(path.name for path in (store.root / "tmp").iterdir()) == ["partial"]


def test_what_a_killed_builder_left_is_removed_by_the_next(store: Store) -> None:
    code = """if True:
        import os, signal, sys
        from pathlib import Path
        from builder.store import Store
        with Store(Path(sys.argv[1])).draft("key") as draft:
            (draft.upper / "file").touch()
            draft.upper.chmod(0)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    subprocess.run([sys.executable, "-c", code, str(store.root)], check=False)
    assert list((store.root / "tmp").glob("session-*/*/layer/tree"))
    assert store.layer(KEY) is None
    assert len(list((store.root / "tmp").glob("session-*"))) == 1


def test_what_a_running_builder_makes_is_left_alone(store: Store) -> None:
    with store.draft(KEY) as draft:
        Store(store.root).layer(KEY)
        assert draft.upper.is_dir()


def test_a_forked_child_does_not_end_the_session_of_its_parent(store: Store) -> None:
    folder = store.session.folder
    child = multiprocessing.get_context("fork").Process(target=sys.exit)
    child.start()
    child.join()
    assert folder.is_dir()


def _fetch_in_child(root: Path, source: Path, number: int) -> None:
    content = source.read_bytes()
    for _ in range(number):
        fetch(Store(root), [blob(content, source.as_uri())])
        Store(root).path(blob(content).sha256).unlink(missing_ok=True)


def test_processes_that_fetch_and_lose_the_same_file_all_end_well(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(1 << 20))
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_fetch_in_child, args=(store.root, source, 15)) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0, 0]
    fetch(store, [blob(source.read_bytes(), source.as_uri())])
    assert store.path(blob(source.read_bytes()).sha256).read_bytes() == source.read_bytes()


def test_a_full_disk_is_said_with_the_way_out(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    _ = store.session

    def full(fd: int, data: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(BuilderError) as caught:
        store.add_stream([b"x"])
    assert "No space left on device; free some space, run `builder store gc`" in str(caught.value)
    assert str(store.root) in str(caught.value)
    assert files(store) == []


def test_a_store_in_the_way_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "store").touch()
    with pytest.raises(BuilderError, match=f"{tmp_path}/store: "):
        Store(tmp_path / "store").layer(KEY)
