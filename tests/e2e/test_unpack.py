"""A template unpacked by Proxmox's own tar call gives the tree that the layers make."""

import os
import random
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from container import unpack

from builder.pack import Info, Layer, pack
from builder.tree import Entry, merge, order, scan

EPOCH = 1_760_572_800
INFO = Info("demo", "", "d" * 64, "debian", "bookworm")
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_bind_service=ep, revision 2

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(os.getuid() != 0, reason="needs root: owners, devices and mounts"),
]


@pytest.fixture
def layers(tmp_path: Path) -> list[Path]:
    """Two layers with one of everything that a template may hold, and whiteouts."""
    low, high = tmp_path / "low", tmp_path / "high"
    for folder in ("bin", "dev", "etc/opt", "gone/deep", "opaque", "shared", "tmp", "usr/lib", "var/lib"):
        (low / folder).mkdir(parents=True)
    (low / "usr/lib/libc.so").write_bytes(os.urandom(300_000))
    (low / "etc/hosts").write_text("127.0.0.1 localhost\n")
    (low / "gone/deep/file").write_text("gone")
    (low / "opaque/old").write_text("old")
    (low / "shared/low").write_text("low")
    (low / "becomes-a-folder").write_text("file")
    (low / "a-name").write_text("many names")
    for name in ("b-name", "etc/c-name"):
        os.link(low / "a-name", low / name)
    (low / "bin/ping").write_bytes(b"\x7fELF")
    os.setxattr(low / "bin/ping", "security.capability", CAPABILITY)
    os.setxattr(low / "bin/ping", "user.binary", b"\0\xff=\n%")
    (low / ("long" * 40)).mkdir()
    (low / ("long" * 40) / ("name" * 50)).symlink_to("target" * 30)
    with open(os.path.join(os.fsencode(low), b"caf\xe9"), "wb"):
        pass
    (low / "na\u00efve \u65e5\u672c").write_text("utf-8")
    os.mkfifo(low / "etc/pipe", 0o620)
    os.mknod(low / "dev/null", 0o20666, os.makedev(1, 3))
    with open(low / "usr/lib/sparse", "wb") as file:
        for start in (0, 5 << 20, (40 << 20) + 16384):
            file.seek(start)
            file.write(os.urandom(20_000))
        file.truncate(64 << 20)
    with open(low / "usr/lib/zeros", "wb") as file:
        file.truncate(2 << 20)
    with open(low / "usr/lib/large", "wb") as file:
        file.write(os.urandom(34 << 20))
    os.chown(low / "var/lib", 101, 65534)
    os.chmod(low / "var/lib", 0o2775)
    os.chmod(low / "tmp", 0o1777)
    os.chmod(low / "usr/lib/libc.so", 0o4755)

    for folder in ("becomes-a-folder", "opaque", "shared"):
        (high / folder).mkdir(parents=True)
    (high / "shared/high").write_text("high")
    (high / "opaque/new").write_text("new")
    (high / "becomes-a-folder/inside").write_text("x")
    os.setxattr(high / "opaque", "user.overlay.opaque", b"y")
    for name in ("gone", "a-name"):
        os.mknod(high / name, 0o20000, 0)
    os.chown(high / "shared", 7, 8)
    os.chmod(high / "shared", 0o710)

    numbers = random.Random(1)
    for tree in (low, high):
        for path in [*tree.rglob("*"), tree]:
            mtime = numbers.randrange(EPOCH)
            os.utime(path, (mtime, mtime), follow_symlinks=False)
    return [low, high]


def expected(layers: Sequence[Path]) -> dict[str, Entry]:
    found = {entry.path: entry for entries in merge([scan(layer) for layer in layers]) for entry in entries}
    return {path: entry for path, entry in found.items() if not path.startswith("dev/")}


def unpacked(root: Path, shift: int = 0) -> dict[str, Entry]:
    found = {}
    for entry in scan(root).entries:
        if entry.path != "lost+found":
            found[entry.path] = entry._replace(uid=entry.uid - shift, gid=entry.gid - shift)
    return found


def make(layers: Sequence[Path], dest: Path) -> Path:
    stack = [Layer(layer.name, scan(layer), layer) for layer in layers]
    packed = pack(stack, dest, name="demo", version="1", architecture="amd64", level=3, epoch=EPOCH, info=INFO)
    return packed.path


@pytest.mark.parametrize("unprivileged", [False, True])
def test_the_unpacked_tree_is_the_merged_tree(layers: list[Path], tmp_path: Path, unprivileged: bool) -> None:
    if unprivileged and shutil.which("lxc-usernsexec") is None:
        pytest.skip("needs lxc-usernsexec")
    for folder in [tmp_path, *tmp_path.parents]:
        if unprivileged and not folder.stat().st_mode & 0o001:
            folder.chmod(0o755)
    template = make(layers, tmp_path / "out")
    unpack(template, tmp_path / "root", unprivileged=unprivileged)
    wanted = expected(layers)
    found = unpacked(tmp_path / "root", 100_000 if unprivileged else 0)
    wanted.pop("")  # the root is made by the host and keeps its attributes
    found.pop("")
    if unprivileged:  # a capability of a user namespace names that namespace's root (capabilities(7), version 3)
        capability = dict(found["bin/ping"].xattrs)["security.capability"]
        assert capability[3] == 3
        assert capability[4:20] == CAPABILITY[4:20]
        assert int.from_bytes(capability[20:24], "little") == 100_000
        found["bin/ping"] = found["bin/ping"]._replace(xattrs=wanted["bin/ping"].xattrs)
    assert sorted(found) == sorted(wanted)
    for path, entry in wanted.items():
        assert found[path] == entry


def test_holes_are_holes_again(layers: list[Path], tmp_path: Path) -> None:
    unpack(make(layers, tmp_path / "out"), tmp_path / "root")
    assert (tmp_path / "root/usr/lib/sparse").stat().st_blocks * 512 < 300_000
    assert (tmp_path / "root/usr/lib/zeros").stat().st_blocks == 0
    assert (tmp_path / "out/demo_1_amd64.tar.zst").stat().st_size < 37 << 20


def test_dev_is_an_empty_folder(layers: list[Path], tmp_path: Path) -> None:
    unpack(make(layers, tmp_path / "out"), tmp_path / "root")
    assert os.listdir(tmp_path / "root/dev") == []


@pytest.fixture
def overlay(tmp_path: Path) -> Iterator[Path]:
    mounted = tmp_path / "merged"
    mounted.mkdir()
    yield mounted
    subprocess.run(["umount", mounted], check=False, capture_output=True)


def mount(layers: Sequence[Path], at: Path) -> None:
    lower = ":".join(map(str, reversed(layers)))
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", f"ro,userxattr,lowerdir={lower}", at], check=True)


def test_merge_is_what_overlayfs_shows(layers: list[Path], overlay: Path) -> None:
    mount(layers, overlay)
    shown = {entry.path: entry for entry in scan(overlay).entries}
    merged = expected(layers)
    assert sorted(shown) == sorted(merged)
    assert shown == merged


@pytest.mark.parametrize("seed", range(25))
def test_random_layers_merge_as_overlayfs_does(tmp_path: Path, overlay: Path, seed: int) -> None:
    numbers = random.Random(seed)
    layers: list[Path] = []
    for number in range(4):
        below = {entry.path for entries in merge([scan(layer) for layer in layers]) for entry in entries}
        layers.append(random_layer(tmp_path / f"layer{number}", numbers, below))
    mount(layers, overlay)
    shown = {entry.path: entry for entry in scan(overlay).entries}
    merged = {entry.path: entry for entries in merge([scan(layer) for layer in layers]) for entry in entries}
    assert shown == merged


def random_layer(root: Path, numbers: random.Random, below: set[str]) -> Path:
    """As overlayfs would write it over `below`: whiteouts only where there is something to hide."""
    root.mkdir()
    opaque: set[Path] = set()
    files: list[Path] = []
    names = ("a", "a-b", "b", "c")
    paths = [(x,) for x in names] + [(x, y) for x in names for y in names] + [("a", "b", z) for z in names]
    for parts in sorted(numbers.sample(paths, 14), key=lambda parts: order("/".join(parts))):
        path = root.joinpath(*parts)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            continue  # a parent is a file in this layer
        if os.path.lexists(path):
            continue
        kind = numbers.choice(["dir", "opaque", "file", "file", "hard", "link", "whiteout"])
        if kind == "link":
            path.symlink_to("nowhere")
        elif kind == "whiteout" and "/".join(parts) in below and opaque.isdisjoint(path.parents):
            os.mknod(path, 0o20000, 0)
        elif kind in ("dir", "opaque"):
            path.mkdir()
            if kind == "opaque":
                os.setxattr(path, "user.overlay.opaque", b"y")
                opaque.add(path)
        elif kind == "hard" and files:
            os.link(files[0], path)
        else:
            path.write_text(f"{root.name} {parts}")
            files.append(path)
    for path in [*root.rglob("*"), root]:
        mtime = numbers.randrange(EPOCH)
        if not path.is_char_device():
            os.utime(path, (mtime, mtime), follow_symlinks=False)
    return root
