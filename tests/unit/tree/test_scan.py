import hashlib
import os
import socket
from pathlib import Path

import pytest

from builder.errors import BuilderError
from builder.tree import Index, changed, normalise, scan, verify

EPOCH = 1_760_572_800
NEVER = (0, 0)


def by_path(index: Index) -> dict[str, object]:
    return {entry.path: entry for entry in index.entries}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "etc").mkdir(parents=True)
    (root / "etc/hosts").write_bytes(b"127.0.0.1 localhost\n")
    (root / "etc-old").write_bytes(b"")
    (root / "etc/alias").symlink_to("hosts")
    return root


def test_members_come_folder_by_folder(tree: Path) -> None:
    assert [entry.path for entry in scan(tree).entries] == ["", "etc", "etc/alias", "etc/hosts", "etc-old"]


def test_a_file_is_described_by_its_bytes_and_attributes(tree: Path) -> None:
    os.chmod(tree / "etc/hosts", 0o640)
    os.utime(tree / "etc/hosts", ns=(0, 1_700_000_000_999_999_999))
    entry = by_path(scan(tree))["etc/hosts"]
    assert entry.type == "file"
    assert (entry.mode, entry.size, entry.mtime) == (0o640, 20, 1_700_000_000)
    assert entry.sha256 == hashlib.sha256(b"127.0.0.1 localhost\n").hexdigest()
    assert (entry.uid, entry.gid) == (os.getuid(), os.getgid())


def test_the_first_name_in_order_is_the_file_and_the_others_link_to_it(tree: Path) -> None:
    os.link(tree / "etc/hosts", tree / "a")
    os.link(tree / "etc/hosts", tree / "z")
    found = by_path(scan(tree))
    assert found["a"].type == "file"
    assert (found["etc/hosts"].type, found["etc/hosts"].target, found["etc/hosts"].size) == ("hardlink", "a", 0)
    assert found["z"].target == "a"
    assert scan(tree).size == 20


def test_a_link_from_outside_the_tree_does_not_count(tree: Path) -> None:
    os.link(tree / "etc/hosts", tree.parent / "outside")
    assert by_path(scan(tree))["etc/hosts"].type == "file"


def test_sockets_are_left_out_and_fifos_kept(tree: Path) -> None:
    os.mkfifo(tree / "pipe")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(os.fspath(tree / "sock"))
    found = by_path(scan(tree))
    assert found["pipe"].type == "fifo"
    assert "sock" not in found


def test_names_that_are_not_utf8_survive(tree: Path) -> None:
    with open(os.path.join(os.fsencode(tree), b"caf\xe9"), "wb"):
        pass
    index = scan(tree)
    index.save(tree.parent / "index")
    assert "caf\udce9" in by_path(Index.load(tree.parent / "index"))


def test_holes_are_told_by_content_not_by_allocation(tree: Path) -> None:
    zeros = bytes(2 << 20)
    (tree / "written").write_bytes(b"x" + zeros)
    with open(tree / "truncated", "wb") as file:
        file.write(b"x")
        file.truncate(1 + len(zeros))
    (tree / "small").write_bytes(bytes(1000))
    found = by_path(scan(tree))
    assert found["written"].sha256 == found["truncated"].sha256
    assert found["written"].sparse
    assert found["truncated"].sparse
    assert not found["small"].sparse


@pytest.mark.parametrize(("data", "zeros", "is_sparse"), [(1, 1, True), (2, 1, False), (1, 2, True)])
def test_a_file_with_few_holes_is_none_that_tar_should_write_in_small_blocks(
    tree: Path, data: int, zeros: int, is_sparse: bool
) -> None:
    (tree / "library").write_bytes(b"x" * (data << 20) + bytes(zeros << 20))
    assert by_path(scan(tree))["library"].sparse == is_sparse


def test_user_attributes_are_kept_and_overlays_are_not(tree: Path) -> None:
    try:
        os.setxattr(tree / "etc/hosts", "user.note", b"\xff")
        os.setxattr(tree / "etc", "user.overlay.opaque", b"y")
        os.setxattr(tree / "etc", "user.overlay.origin", b"?")
    except OSError:
        pytest.skip("this file system has no user attributes")
    found = by_path(scan(tree))
    assert found["etc/hosts"].xattrs == (("user.note", b"\xff"),)
    assert found["etc"].xattrs == ()
    assert found["etc"].opaque


def test_a_copy_up_without_data_is_refused(tree: Path) -> None:
    try:
        os.setxattr(tree / "etc/hosts", "user.overlay.metacopy", b"")
    except OSError:
        pytest.skip("this file system has no user attributes")
    with pytest.raises(BuilderError, match=r"etc/hosts: user.overlay.metacopy"):
        scan(tree)


def test_the_digest_is_that_of_the_documented_lines(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir(mode=0o755)
    os.utime(tmp_path / "one", (5, 5))
    index = scan(tmp_path / "one")
    line = f'["","dir",493,{os.getuid()},{os.getgid()},0,5,"","",[],false,false]\n'
    assert index.digest == hashlib.sha256(line.encode()).hexdigest()


def test_the_number_of_threads_changes_nothing(tree: Path) -> None:
    for number in range(200):
        (tree / f"file{number}").write_bytes(os.urandom(number))
    assert scan(tree, jobs=1) == scan(tree, jobs=8)


def test_a_missing_tree_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(BuilderError, match="nowhere: No such file"):
        scan(tmp_path / "nowhere")


def test_an_index_comes_back_as_it_was_saved(tree: Path, tmp_path: Path) -> None:
    index = scan(tree)
    index.save(tmp_path / "index")
    assert Index.load(tmp_path / "index") == index


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text", "missing"])
def test_a_damaged_index_is_an_error(tree: Path, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "index"
    scan(tree).save(path)
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(data[:-7])
    elif damage == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_bytes(b"hello")
    else:
        path.unlink()
    with pytest.raises(BuilderError, match=r"/index: "):
        Index.load(path)


def test_an_untouched_tree_is_unchanged(tree: Path) -> None:
    index = scan(tree)
    assert changed(index, tree) == []
    assert verify(index, tree) == []


def test_moving_the_tree_is_no_change(tree: Path) -> None:
    index = scan(tree)
    tree.rename(tree.with_name("moved"))
    assert changed(index, tree.with_name("moved")) == []


def test_changes_are_named(tree: Path) -> None:
    index = scan(tree)
    (tree / "etc/hosts").write_bytes(b"127.0.0.1 localhosT\n")
    os.utime(tree / "etc/hosts", (0, 0))
    (tree / "etc-old").unlink()
    assert changed(index, tree) == ["", "etc/hosts", "etc-old"]


def test_an_added_file_shows_at_its_folder(tree: Path) -> None:
    index = scan(tree)
    (tree / "etc/new").write_bytes(b"")
    assert changed(index, tree) == ["etc"]
    assert "etc/new" in verify(index, tree)


def test_a_changed_mode_is_a_change_of_the_root_too(tree: Path) -> None:
    index = scan(tree)
    os.chmod(tree, 0o700)
    assert changed(index, tree) == [""]


def test_verify_sees_bytes_that_kept_their_stat_data(tree: Path) -> None:
    index = scan(tree)
    status = os.stat(tree / "etc/hosts")
    (tree / "etc/hosts").write_bytes(b"127.0.0.1 localhosT\n")
    os.utime(tree / "etc/hosts", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert verify(index, tree) == ["etc/hosts"]


def test_recent_and_future_times_become_the_epoch_and_old_ones_whole_seconds(tree: Path) -> None:
    second = 1_000_000_000
    times = {"old": 100 * second + 7, "inside": 205 * second, "future": (EPOCH + 1) * second, "exact": 50 * second}
    for name, mtime in times.items():
        (tree / name).write_bytes(b"")
        os.utime(tree / name, ns=(0, mtime))
    (tree / "link").symlink_to("nowhere")
    os.utime(tree / "link", ns=(0, 201 * second), follow_symlinks=False)
    os.utime(tree / "etc", ns=(0, 199 * second), follow_symlinks=False)
    normalise(tree, EPOCH, [(1, 2), (200 * second, 210 * second)])
    found = {path: entry.mtime for path, entry in by_path(scan(tree)).items()}
    assert found["old"] == 100
    assert os.stat(tree / "old").st_mtime_ns == 100 * second
    assert (found["inside"], found["future"], found["exact"]) == (EPOCH, EPOCH, 50)
    assert (found["link"], found["etc"]) == (EPOCH, 199)


@pytest.mark.parametrize("there", [True, False])
def test_a_mark_that_hides_nothing_is_dropped(tree: Path, tmp_path: Path, there: bool) -> None:
    os.setxattr(tree / "etc", "user.overlay.opaque", b"y")
    lower = [tmp_path / "lowest", tmp_path / "lower"]
    for folder in lower:
        folder.mkdir()
    if there:
        (lower[0] / "etc").mkdir()
    normalise(tree, EPOCH, [NEVER], lower)
    assert by_path(scan(tree))["etc"].opaque == there


def test_dropping_a_socket_does_not_touch_its_folders_time(tree: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(os.fspath(tree / "etc/sock"))
    os.utime(tree / "etc", (7, 7))
    normalise(tree, EPOCH, [NEVER])
    assert not (tree / "etc/sock").exists()
    assert by_path(scan(tree))["etc"].mtime == 7


def test_two_runs_at_different_times_give_the_same_digest(tmp_path: Path) -> None:
    digests = set()
    for number in (1, 2):
        root = tmp_path / str(number)
        (root / "b").mkdir(parents=True)
        for name in ("x", "y", "b/z") if number == 1 else ("b/z", "y", "x"):
            (root / name).write_bytes(name.encode())
        normalise(root, EPOCH, [(0, 1 << 62)])
        digests.add(scan(root).digest)
    assert len(digests) == 1
