"""Packing a small tree, as a user sees it: the files that appear, and what is in them."""

import errno
import hashlib
import io
import json
import os
import random
import resource
import subprocess
import sys
import tarfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from builder import canonical
from builder.errors import BuilderError
from builder.pack import Earlier, Layer, Packed, Stat, manifest, newest, pack, parts
from builder.pack.content import Member
from builder.pack.segment import MOST, Segment, cut, row
from builder.tree import Entry, scan
from tests.unit.pack.packing import EPOCH, INFO, make, pack_layers, tree_of


def contents(template: Path) -> tarfile.TarFile:
    with open(template, "rb") as file:
        data = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True).read()
    return tarfile.open(fileobj=io.BytesIO(data))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return tree_of(
        tmp_path / "base",
        {
            "etc/hostname": b"localhost\n",
            "etc/machine-id": b"0123456789abcdef\n",
            "usr/bin/tool": b"#!/bin/sh\n" * 1000,
            "usr/lib/big.so": os.urandom(MOST + 5),
        },
    )


def test_what_lies_in_the_folder_afterwards(tree: Path, tmp_path: Path) -> None:
    packed = make([tree], tmp_path / "out")
    names = ["SHA256SUMS", "demo_1_amd64.cdx.json", "demo_1_amd64.manifest.json", "demo_1_amd64.tar.zst"]
    assert sorted(os.listdir(tmp_path / "out")) == names
    assert packed.path == tmp_path / "out/demo_1_amd64.tar.zst"
    assert packed.sha256 == hashlib.sha256(packed.path.read_bytes()).hexdigest()
    assert packed.size == packed.path.stat().st_size
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=tmp_path / "out", check=True)


def test_other_programs_accept_it(tree: Path, tmp_path: Path) -> None:
    packed = make([tree], tmp_path / "out")
    subprocess.run(["zstd", "-q", "-t", packed.path], check=True)
    listed = subprocess.run(["tar", "--zstd", "-tf", packed.path], check=True, capture_output=True, text=True)
    assert listed.stdout.splitlines() == [
        "./",
        "./etc/",
        "./etc/hostname",
        "./etc/machine-id",
        "./usr/",
        "./usr/bin/",
        "./usr/bin/tool",
        "./usr/lib/",
        "./usr/lib/big.so",
    ]
    assert listed.stderr == ""
    unpacked = subprocess.run(["zstd", "-dc", packed.path], check=True, capture_output=True).stdout
    assert len(unpacked) == packed.tar_size


def test_files_come_back_byte_by_byte(tree: Path, tmp_path: Path) -> None:
    with contents(make([tree], tmp_path / "out").path) as tar:
        for name in ("etc/hostname", "usr/bin/tool", "usr/lib/big.so"):
            file = tar.extractfile(f"./{name}")
            assert file is not None
            assert file.read() == (tree / name).read_bytes()


def test_the_machine_id_is_empty(tree: Path, tmp_path: Path) -> None:
    with contents(make([tree], tmp_path / "out").path) as tar:
        assert tar.getmember("./etc/machine-id").size == 0


def test_what_no_template_holds_is_left_out(tmp_path: Path) -> None:
    gone = [
        "dev/null",
        "tmp/a/b",
        "run/lock",
        "etc/ssh/ssh_host_rsa_key",
        "etc/ssh/ssh_host_rsa_key.pub",
        "root/.cache/pip/x",
        "var/cache/apt/archives/curl.deb",
        "var/cache/apt/pkgcache.bin",
        "var/cache/ldconfig/aux-cache",
        "var/lib/apt/lists/deb.debian.org_InRelease",
        "var/log/dpkg.log",
        "var/log/apt/term.log",
    ]
    kept = ["etc/ssh/sshd_config", "var/log/journal/x", "home/tmp/a", "opt/dev/x"]
    tree = tree_of(tmp_path / "base", dict.fromkeys([*gone, *kept], b"x"))
    with contents(make([tree], tmp_path / "out").path) as tar:
        names = tar.getnames()
    assert [name for name in names if name.removeprefix("./") in gone] == []
    assert {f"./{name}" for name in kept} <= set(names)
    assert {"./dev", "./tmp", "./run", "./var/lib/apt/lists"} <= set(names)


def test_a_hard_link_to_a_file_that_is_left_out_becomes_the_file(tmp_path: Path) -> None:
    tree = tree_of(tmp_path / "base", {"tmp/a": b"kept under another name"})
    os.link(tree / "tmp/a", tree / "z")
    with contents(make([tree], tmp_path / "out").path) as tar:
        file = tar.extractfile("./z")
        assert file is not None
        assert file.read() == b"kept under another name"


def test_upper_layers_win_and_folders_hold_their_content_together(tmp_path: Path) -> None:
    low = tree_of(tmp_path / "low", {"a/one": b"low", "a/two": b"low", "b/x": b"low"})
    high = tree_of(tmp_path / "high", {"a/one": b"high", "a/zz": b"high"})
    os.chmod(high / "a", 0o750)
    with contents(make([low, high], tmp_path / "out").path) as tar:
        assert tar.getnames() == [".", "./a", "./a/one", "./a/two", "./a/zz", "./b", "./b/x"]
        assert tar.getmember("./a").mode == 0o750
        one = tar.extractfile("./a/one")
        assert one is not None
        assert one.read() == b"high"


def test_what_is_large_and_seldom_changes_comes_first(tmp_path: Path) -> None:
    tree = tree_of(tmp_path / "t", {"etc/a": b"1", "opt/v/lib": b"2", "opta": b"3", "usr/b": b"4"})
    names = [".", "./opt", "./opt/v", "./opt/v/lib", "./etc", "./etc/a", "./opta", "./usr", "./usr/b"]
    with contents(make([tree], tmp_path / "out").path) as tar:
        assert tar.getnames() == names
    os.link(tree / "opt/v/lib", tree / "usr/lib")
    with contents(make([tree], tmp_path / "out").path) as tar:
        assert tar.getnames() == [*names, "./usr/lib"]
        assert tar.getmember("./usr/lib").linkname == "./opt/v/lib"
    os.link(tree / "etc/a", tree / "opt/a")
    with contents(make([tree], tmp_path / "out").path) as tar:
        assert tar.getnames()[1] == "./etc", "a hard link comes after its file"
        assert tar.getmember("./opt/a").linkname == "./etc/a"


def test_how_the_stages_are_cut_changes_no_byte(tmp_path: Path) -> None:
    whole = tree_of(tmp_path / "whole", {"a/1": b"x", "b/2": b"y"})
    low = tree_of(tmp_path / "low", {"a/1": b"x"})
    high = tree_of(tmp_path / "high", {"b/2": b"y"})
    assert make([whole], tmp_path / "one").sha256 == make([low, high], tmp_path / "two").sha256


def test_the_number_of_threads_and_an_earlier_template_change_no_byte(tree: Path, tmp_path: Path) -> None:
    first = make([tree], tmp_path / "one", jobs=1)
    second = make([tree], tmp_path / "two", jobs=5)
    third = make([tree], tmp_path / "three", previous=first.path)
    assert first.sha256 == second.sha256 == third.sha256
    assert (first.reused, third.reused) == (0, third.frames)
    for name in ("demo_1_amd64.manifest.json", "demo_1_amd64.cdx.json", "SHA256SUMS"):
        assert len({(tmp_path / folder / name).read_bytes() for folder in ("one", "two", "three")}) == 1


def test_unchanged_files_are_not_even_read(tree: Path, tmp_path: Path) -> None:
    first = make([tree], tmp_path / "one")
    index = scan(tree)
    (tree / "usr/lib/big.so").unlink()
    pack_layers([Layer("base", index, tree)], tmp_path / "two", previous=first.path)
    assert (tmp_path / "two/demo_1_amd64.tar.zst").read_bytes() == first.path.read_bytes()


def test_a_small_change_recompresses_little(tree: Path, tmp_path: Path) -> None:
    first = make([tree], tmp_path / "out")
    (tree / "etc/hostname").write_bytes(b"other\n")
    second = make([tree], tmp_path / "out", version="2", previous=first.path)
    assert second.frames - second.reused == 1
    assert second.sha256 == make([tree], tmp_path / "fresh", version="2").sha256


def test_a_damaged_earlier_template_is_not_copied(tree: Path, tmp_path: Path) -> None:
    first = make([tree], tmp_path / "one")
    good = first.path.read_bytes()
    data = bytearray(good)
    data[len(data) // 2] ^= 1
    first.path.write_bytes(data)
    again = make([tree], tmp_path / "two", previous=first.path)
    assert again.path.read_bytes() == good
    assert again.reused == 0


def test_a_bad_sector_in_the_earlier_template_costs_time_only(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make([tree], tmp_path / "one")
    real = os.preadv

    def preadv(descriptor: int, buffers: list[memoryview], start: int) -> int:
        if os.path.samestat(os.fstat(descriptor), first.path.stat()):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(descriptor, buffers, start)

    monkeypatch.setattr(os, "preadv", preadv)
    again = make([tree], tmp_path / "two", previous=first.path)
    assert (again.sha256, again.reused) == (first.sha256, 0)


def test_a_bad_sector_in_a_large_file_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tree").mkdir()
    with (tmp_path / "tree/big").open("wb") as file:
        for number in range(5):
            file.write(random.Random(number).randbytes(MOST))
    os.utime(tmp_path / "tree/big", (EPOCH, EPOCH))
    index = scan(tmp_path / "tree")
    real = os.preadv

    def preadv(descriptor: int, buffers: list[memoryview], start: int) -> int:
        if start == 3 * MOST:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(descriptor, buffers, start)

    monkeypatch.setattr(os, "preadv", preadv)
    with pytest.raises(BuilderError, match="'big' Input/output error"):
        pack_layers([Layer("base", index, tmp_path / "tree")], tmp_path / "out", jobs=4)


@pytest.mark.parametrize("part", [0, 1, 2])
def test_what_was_damaged_in_the_folder_is_replaced(tree: Path, tmp_path: Path, part: int) -> None:
    made = make([tree], tmp_path / "out")
    damaged = parts(made.path)[part]
    good = damaged.read_bytes()
    damaged.write_bytes(good[:-1] + b"x")
    assert make([tree], tmp_path / "out", previous=made.path).sha256 == made.sha256
    assert damaged.read_bytes() == good


def rotten(template: Packed, place: int) -> Earlier:
    """The template with another byte at `place`, of which the kernel tells nothing."""
    with template.path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1]))
    return replace(template.left, stat=Stat.of(template.path.stat()))


@pytest.fixture
def two_large(tmp_path: Path) -> Path:
    return tree_of(tmp_path / "base", {"opt/a": os.urandom(9 << 20), "opt/b": b"b", "usr/c": os.urandom(9 << 20)})


def test_a_bad_bit_after_the_first_change_costs_time_only(two_large: Path, tmp_path: Path) -> None:
    earlier = rotten(make([two_large], tmp_path / "one"), -1000 + (18 << 20))
    (two_large / "opt/b").write_bytes(b"other")
    again = make([two_large], tmp_path / "two", previous=earlier)
    assert again.reused == 0
    assert again.path.read_bytes() == make([two_large], tmp_path / "fresh").path.read_bytes()


def test_a_bad_bit_before_the_first_change_shows_in_the_sum(two_large: Path, tmp_path: Path) -> None:
    """What is not read is not vouched for either: the sum is that of the bytes as they were made."""
    earlier = rotten(make([two_large], tmp_path / "one"), 1000)
    (two_large / "opt/b").write_bytes(b"other")
    again = make([two_large], tmp_path / "two", previous=earlier)
    assert again.reused > 0
    assert again.sha256 == make([two_large], tmp_path / "fresh").sha256
    check = subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=tmp_path / "two", capture_output=True, text=True)
    assert "demo_1_amd64.tar.zst: FAILED" in check.stdout


@pytest.mark.parametrize("harm", ["cut", "gone", "written to", "another in its place"])
def test_an_earlier_template_that_is_not_as_it_was_left_is_not_used(tree: Path, tmp_path: Path, harm: str) -> None:
    first = make([tree], tmp_path / "one")
    data = first.path.read_bytes()
    if harm == "cut":
        first.path.write_bytes(data[:-10])
    elif harm == "written to":
        first.path.write_bytes(data)
        os.utime(first.path, ns=(first.left.stat.modified, first.left.stat.modified))
    else:
        first.path.unlink()
        if harm == "another in its place":
            first.path.write_bytes(data)
    again = make([tree], tmp_path / "two", previous=first.path)
    assert (again.sha256, again.reused) == (first.sha256, 0)


@pytest.mark.parametrize(
    "harm",
    [
        {"frames": [[1]]},
        {"frames": [["a" * 64, 1 << 40, 10, 10]]},
        {"frames": [["a" * 64, 0, "10", 10]]},
        {"frames": None},
        {"states": ""},
        {"states": "00"},
        {"states": "none"},
        {"stat": [1, 2, 3]},
        {"stat": ["1", 2, 3, 4]},
        {"sha256": None},
        {"step": 1},
    ],
)
def test_what_is_told_of_an_earlier_template_may_be_anything(tree: Path, tmp_path: Path, harm: dict[str, Any]) -> None:
    first = make([tree], tmp_path / "one")
    assert Earlier.load(first.path, {**first.left.told(), **harm}) is None


@pytest.mark.parametrize("name", ["usr/bin/tool", "usr/lib/big.so"])
@pytest.mark.parametrize("harm", ["flip", "cut", "gone", "link"])
def test_a_damaged_layer_never_gets_into_a_template(tree: Path, tmp_path: Path, name: str, harm: str) -> None:
    index = scan(tree)
    path = tree / name
    if harm == "flip":
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif harm == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
        if harm == "link":
            path.symlink_to("/etc/passwd")
    with pytest.raises(BuilderError, match=rf"^layer base: '{name}' .*store verify"):
        pack_layers([Layer("base", index, tree)], tmp_path / "out", jobs=3)
    assert os.listdir(tmp_path / "out") == []


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process grows beyond `size`: what a full disk looks like."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_error_and_leaves_the_folder_as_it_was(tree: Path, tmp_path: Path) -> None:
    make([tree_of(tmp_path / "small", {"a": b"a"})], tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with largest_file(1 << 20), pytest.raises(BuilderError, match=r"/out: File too large; free some space"):
        make([tree], tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_what_a_killed_run_left_is_cleared(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "out/.pack-dead").mkdir(parents=True)
    (tmp_path / "out/.pack-dead/demo_1_amd64.tar.zst").write_bytes(b"half")
    make([tree], tmp_path / "out")
    assert not (tmp_path / "out/.pack-dead").exists()


def test_sums_cover_every_template_and_forget_what_is_gone(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make([tree], out)
    make([tree], out, version="2")
    (out / "demo_1_amd64.tar.zst").unlink()
    (out / "other_1_amd64.tar.zst").write_bytes(b"made elsewhere")
    make([tree], out, version="3")
    listed = [line.split("  ")[1] for line in (out / "SHA256SUMS").read_text().splitlines()]
    assert listed == sorted(listed)
    assert "demo_1_amd64.tar.zst" not in listed
    assert {"demo_2_amd64.tar.zst", "demo_3_amd64.tar.zst", "other_1_amd64.tar.zst"} <= set(listed)
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=out, check=True)


def test_the_newest_template_of_a_name(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert newest(out, "demo", "amd64") is None
    make([tree], out, version="10")
    second = make([tree], out, version="9")
    os.utime(out / "demo_10_amd64.tar.zst", (1, 1))
    assert newest(out, "demo", "amd64") == second.path


def test_the_manifest_tells_where_it_comes_from_and_what_is_in_it(tree: Path, tmp_path: Path) -> None:
    os.chmod(tree / "usr/bin/tool", 0o755)
    packed = make([tree], tmp_path / "out")
    told = json.loads((tmp_path / "out/demo_1_amd64.manifest.json").read_text())
    assert (told["name"], told["version"], told["variant"], told["recipe_digest"]) == ("demo", "1", "pypi", "d" * 64)
    assert (told["sha256"], told["size"], told["tar_size"]) == (packed.sha256, packed.size, packed.tar_size)
    assert told["stages"] == [
        {"name": "base", "kind": "debian", "key": "k" * 64, "digest": "e" * 64, "size": 5},
    ]
    assert told["target"] == {
        "name": "Card",
        "compute_capability": "12.0",
        "devices": 2,
        "memory_mib": 16311,
    }
    assert told["venvs"] == [
        {"name": "vllm", "path": "/opt/vllm", "python": "/usr/bin/python3.11", "requirements": ["vllm==0.10.2"]}
    ]
    files = {file["path"]: file for file in told["files"]}
    assert len(files) == packed.files
    tool = files["usr/bin/tool"]
    assert (tool["type"], tool["mode"], tool["size"], tool["mtime"]) == ("file", "0755", 10_000, EPOCH)
    assert tool["sha256"] == hashlib.sha256((tree / "usr/bin/tool").read_bytes()).hexdigest()


def test_each_frame_unpacks_alone_and_tells_its_size(tree: Path, tmp_path: Path) -> None:
    packed = make([tree], tmp_path / "out")
    data = packed.path.read_bytes()
    frames = json.loads((tmp_path / "out/demo_1_amd64.manifest.json").read_text())["frames"]
    assert len(frames) == packed.frames
    assert frames[0][1] == 0
    for _, offset, length, tar_size in frames:
        assert (offset % 4096, length % 4096) == (0, 0)
        frame = data[offset : offset + length]
        parameters = zstandard.get_frame_parameters(frame)
        assert (parameters.content_size, parameters.has_checksum) == (tar_size, True)
        assert len(zstandard.ZstdDecompressor().decompress(frame)) == tar_size


def test_the_bill_of_materials(tmp_path: Path) -> None:
    metadata = b"Metadata-Version: 2.4\nName: vLLM\nVersion: 0.10.2\nLicense-Expression: Apache-2.0\n\ntext\n"
    copyright_file = b"Format: https://x/\n\nFiles: *\nLicense: curl\n\nFiles: x\nLicense: Apache-2.0\n"
    files = {
        "opt/v/lib/python3.11/site-packages/vllm-0.10.2.dist-info/METADATA": metadata,
        "usr/share/doc/curl/copyright": copyright_file,
    }
    packed = make([tree_of(tmp_path / "base", files)], tmp_path / "out")
    bill = json.loads((tmp_path / "out/demo_1_amd64.cdx.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill["serialNumber"] == f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'sha256:{packed.sha256}')}"
    assert datetime.fromisoformat(bill["metadata"]["timestamp"]) == datetime.fromtimestamp(EPOCH, timezone.utc)
    assert bill["metadata"]["component"]["hashes"] == [{"alg": "SHA-256", "content": packed.sha256}]
    found = {component["name"]: component for component in bill["components"]}
    assert found["curl"]["purl"] == "pkg:deb/debian/curl@7.88.1-10?arch=amd64&distro=bookworm"
    assert found["curl"]["hashes"] == [{"alg": "SHA-256", "content": "a" * 64}]
    assert found["curl"]["licenses"] == [{"license": {"id": "Apache-2.0"}}, {"license": {"id": "curl"}}]
    assert found["vllm"]["purl"] == "pkg:pypi/vllm@0.10.2"
    assert found["vllm"]["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert (found["driver.run"]["type"], found["driver.run"]["hashes"][0]["content"]) == ("file", "c" * 64)
    assert found["driver.run"]["externalReferences"][0]["url"] == "https://us.download.nvidia.com/driver.run"


def test_the_bill_of_materials_is_valid(tree: Path, tmp_path: Path) -> None:
    validation = pytest.importorskip("cyclonedx.validation.json")
    schema = pytest.importorskip("cyclonedx.schema")
    make([tree], tmp_path / "out")
    text = (tmp_path / "out/demo_1_amd64.cdx.json").read_text()
    try:
        errors = validation.JsonStrictValidator(schema.SchemaVersion.V1_6).validate_str(text)
    except Exception as error:
        if type(error).__name__ != "MissingOptionalDependencyException":
            raise
        pytest.skip(str(error))
    assert errors is None


PACK_FOREVER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from packing import make
print("ready", flush=True)
for number in range(10_000):
    make([Path(sys.argv[1]) / "base", Path(sys.argv[1]) / str(number % 2)], Path(sys.argv[1]) / "out")
"""


@pytest.mark.parametrize("seconds", [0.03, 0.1, 0.17, 0.29, 0.41])
def test_a_kill_at_any_moment_leaves_nothing_wrong(tree: Path, tmp_path: Path, seconds: float) -> None:
    for name in ("0", "1"):
        tree_of(tmp_path / name, {"etc/hostname": name.encode()})
    script = [sys.executable, "-c", PACK_FOREVER, str(tmp_path), str(Path(__file__).parent)]
    with subprocess.Popen(script, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(seconds)
        process.kill()
    out = tmp_path / "out"
    if (out / "SHA256SUMS").exists():
        subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=out, check=True)
    template = out / "demo_1_amd64.tar.zst"
    if template.exists():
        told = json.loads((out / "demo_1_amd64.manifest.json").read_text())
        assert told["sha256"] == hashlib.sha256(template.read_bytes()).hexdigest()
    make([tree], out)
    assert len(os.listdir(out)) == 4


def test_zeros_are_packed_as_holes(tmp_path: Path) -> None:
    for size in (3 << 20, 2 * MOST + 7):
        tree = tree_of(tmp_path / f"base{size}", {"f": b"head" + bytes(size) + b"tail", "zero": bytes(size)})
        packed = make([tree], tmp_path / f"out{size}")
        assert packed.tar_size < 200_000
        with contents(packed.path) as tar:
            assert tar.getmember("./f").issparse()
            for name in ("f", "zero"):
                file = tar.extractfile(f"./{name}")
                assert file is not None
                assert file.read() == (tree / name).read_bytes()


def test_cuts_follow_the_content() -> None:
    """A member that comes or goes changes the segment it is in, and at most the one beside it."""

    def member(number: int) -> Member:
        path = f"dir/{number:05}"
        return Member(Entry(path, "file", size=100_000, sha256=f"{number:064x}"), "base", Path())

    members = [member(number) for number in range(3000)]
    before = {segment.identity for segment in cut(members, 3)}
    assert 20 < len(before) < 80
    for place in (0, 777, 1500, 2999):
        without = {segment.identity for segment in cut([*members[:place], *members[place + 1 :]], 3)}
        assert len(without - before) <= 2
    assert before.isdisjoint(segment.identity for segment in cut(members, 4))


def test_segments_are_bounded_and_lose_nothing() -> None:
    sizes = [0, 5, MOST - 1, MOST, MOST + 1, 10 * MOST, 7] * 3
    entries = [Entry(str(number), "file", size=size, sha256=str(number)) for number, size in enumerate(sizes)]
    found: list[Segment] = list(cut([Member(entry, "base", Path()) for entry in entries], 3))
    pieces = [piece for segment in found for piece in segment.pieces]
    assert sum(piece.stop - piece.start for piece in pieces) == sum(sizes)
    assert {piece.member.entry.path for piece in pieces} == {entry.path for entry in entries}
    assert all(sum(piece.stop - piece.start for piece in segment.pieces) <= 2 * MOST for segment in found)
    assert len({segment.identity for segment in found}) == len(found)


def test_a_layer_of_an_earlier_run_is_read_again_and_a_new_one_is_not(tmp_path: Path) -> None:
    """What was captured by this very run is packed as it is; anything older is compared with its index."""
    tree = tmp_path / "layer"
    tree.mkdir()
    (tree / "file").write_bytes(b"captured")
    index = scan(tree)
    (tree / "file").write_bytes(b"damaged!")
    settings = {"name": "demo", "version": "1", "architecture": "amd64", "level": 3, "epoch": 1, "info": INFO}
    with pytest.raises(BuilderError, match="changed after it was captured"):
        pack([Layer("base", index, tree)], tmp_path / "old", **settings)
    assert pack([Layer("base", index, tree, is_new=True)], tmp_path / "new", **settings).files == 2


ENTRIES = st.builds(
    Entry,
    path=st.text(),
    type=st.sampled_from(["dir", "file", "link", "fifo", "hardlink"]),
    mode=st.integers(0, 0o7777),
    uid=st.integers(0, 1 << 31),
    gid=st.integers(0, 1 << 31),
    size=st.integers(0, 1 << 40),
    mtime=st.integers(0, 1 << 40),
    target=st.text(st.characters(codec=None), max_size=5),
    sha256=st.just("a" * 64),
    xattrs=st.lists(st.tuples(st.text(), st.binary()), max_size=2).map(tuple),
    sparse=st.booleans(),
)


@given(ENTRIES)
def test_a_member_is_identified_by_its_canonical_form(entry: Entry) -> None:
    xattrs = [[name, value.hex()] for name, value in entry.xattrs]
    all_but_data = [entry.path, entry.type, entry.mode, entry.uid, entry.gid, entry.size, entry.mtime, entry.target]
    assert row(entry).encode() == canonical.encode([*all_but_data, entry.sha256, xattrs, entry.sparse])


@given(ENTRIES)
def test_the_manifest_tells_all_of_a_file(entry: Entry) -> None:
    lines = manifest.files([Member(entry, "base", Path())]).splitlines()
    assert lines[1] == json.dumps(json.loads(lines[1]), separators=(",", ":"))
    told = json.loads(lines[1])
    assert (told["path"], told["type"], told["mode"]) == (entry.path, entry.type, f"{entry.mode:04o}")
    assert (told["uid"], told["gid"], told["mtime"]) == (entry.uid, entry.gid, entry.mtime)
    assert (told.get("target", ""), told.get("sparse", False)) == (entry.target, entry.sparse)
    assert told.get("xattrs", {}) == {name: value.hex() for name, value in entry.xattrs}
    assert ("size" in told, "sha256" in told) == (entry.type == "file",) * 2
