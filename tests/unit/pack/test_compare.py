"""`builder verify` and `builder diff` on small templates, as a user calls them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from builder.cli import cli
from builder.errors import BuilderError
from builder.lock.model import Blob, Deb, Wheel
from builder.pack import Info, Layer, StageInfo, pack
from builder.pack.segment import MOST
from builder.tree import scan

EPOCH = 1_760_572_800
NAMES = ("tar.zst", "manifest.json", "cdx.json")
INFO = Info(
    recipe="demo",
    variant="",
    recipe_digest="d" * 64,
    distribution="debian",
    release="bookworm",
    stages=(StageInfo("base", "debian", "1" * 64, "a" * 64, 5000),),
    debs=(Deb("curl", "1.0", "amd64", "bookworm", Blob("1" * 64, 1, "curl_1.0_amd64.deb", ("http://a/c.deb",))),),
    wheels=(Wheel("vllm", "0.10.2", Blob("2" * 64, 1, "vllm-0.10.2-py3-none-any.whl", ("https://a/v.whl",)), ""),),
    urls=(("model", Blob("3" * 64, 1, "model.bin", ("https://a/model.bin",))),),
)


def make(root: Path, dest: Path, version: str = "1", info: Info = INFO) -> Path:
    packed = pack(
        [Layer("base", scan(root), root)],
        dest,
        name="demo",
        version=version,
        architecture="amd64",
        level=1,
        epoch=EPOCH,
        info=info,
        jobs=2,
    )
    return packed.path


def settle(root: Path) -> Path:
    for path in [root, *root.rglob("*")]:
        os.utime(path, (EPOCH, EPOCH), follow_symlinks=False)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Every kind of member that a template may hold."""
    root = tmp_path / "root"
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/tool").write_bytes(b"#!/bin/sh\n")
    (root / "usr/bin/tool").chmod(0o4755)
    os.link(root / "usr/bin/tool", root / "usr/bin/zz-same")
    os.setxattr(root / "usr/bin/tool", "user.note", b"\0=\xff\n")
    (root / "usr/[bold]").symlink_to("bin/tool")
    (root / ("long/" * 30)).mkdir(parents=True)
    (root / ("long/" * 30) / "file").write_bytes(b"deep")
    (root / os.fsdecode(b"odd\xff")).write_bytes(b"odd")
    os.mkfifo(root / "fifo")
    (root / "big").write_bytes(os.urandom(MOST + 7))
    (root / "sparse").write_bytes(b"1" + bytes(3 << 20) + b"2")
    return settle(root)


@pytest.fixture
def template(root: Path, tmp_path: Path) -> Path:
    return make(root, tmp_path / "out")


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments], standalone_mode=False)
    if isinstance(done.exception, BuilderError):
        return done.exception.exit_code, str(done.exception)
    if done.exception is not None:
        raise done.exception
    return done.return_value or 0, done.stdout


def beside(template: Path, number: int) -> Path:
    return template.with_name(template.name.replace("tar.zst", NAMES[number]))


def test_a_template_is_what_its_manifest_says(template: Path) -> None:
    status, said = run("verify", template)
    sha256 = hashlib.sha256(template.read_bytes()).hexdigest()
    told = json.loads(beside(template, 1).read_bytes())
    assert status == 0, said
    assert said == f"{template}  {len(told['files'])} files: as its manifest says\nsha256:{sha256}\n"
    assert json.loads(run("verify", template, "--json")[1]) == {
        "sha256": sha256,
        "files": len(told["files"]),
        "differences": [],
    }


def told_again(template: Path, change: Callable[[dict[str, Any]], None]) -> None:
    told = json.loads(beside(template, 1).read_bytes())
    change(told)
    beside(template, 1).write_text(json.dumps(told))


CHANGES = {
    "mode": ("usr/bin/tool", "0755", "has mode 4755, its manifest says 0755"),
    "uid": ("fifo", 7, f"has uid {os.getuid()}, its manifest says 7"),
    "gid": ("usr", 7, f"has gid {os.getgid()}, its manifest says 7"),
    "mtime": ("usr", 7, f"has mtime {EPOCH}, its manifest says 7"),
    "size": ("big", 7, f"has size {MOST + 7}, its manifest says 7"),
    "sha256": ("sparse", "0" * 64, f"its manifest says {'0' * 64}"),
    "target": ("usr/[bold]", "/etc", "has target bin/tool, its manifest says /etc"),
    "xattrs": ("usr/bin/tool", {}, "has xattrs {'user.note': '003dff0a'}, its manifest says {}"),
    "sparse": ("sparse", False, "has sparse True, its manifest says False"),
    "type": ("fifo", "file", "has type fifo, its manifest says file"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_attribute_of_a_file_is_compared(template: Path, name: str) -> None:
    path, value, said = CHANGES[name]

    def change(told: dict[str, Any]) -> None:
        next(file for file in told["files"] if file["path"] == path)[name] = value

    told_again(template, change)
    status, lines = run("verify", template)
    assert status == 1
    assert lines.splitlines()[0].startswith(f"{path} has {name} ")
    assert lines.splitlines()[0].endswith(said)


def test_a_hard_links_target_is_compared(template: Path) -> None:
    def change(told: dict[str, Any]) -> None:
        next(file for file in told["files"] if file["type"] == "hardlink")["target"] = "big"

    told_again(template, change)
    line = "usr/bin/zz-same has target usr/bin/tool, its manifest says big"
    assert run("verify", template)[1].splitlines()[0] == line


def test_more_and_fewer_members_than_the_manifest_has(template: Path) -> None:
    def change(told: dict[str, Any]) -> None:
        told["files"] = [file for file in told["files"] if file["path"] != "fifo"]
        told["files"].append({**told["files"][-1], "path": "gone"})

    told_again(template, change)
    lines = run("verify", template)[1].splitlines()
    assert lines[:2] == ["fifo is not in the manifest", "gone is missing in the template"]


def rewrite(template: Path, change: Callable[[bytes], bytes]) -> None:
    with open(template, "rb") as file:
        data = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True).read()
    template.write_bytes(zstandard.ZstdCompressor(level=1).compress(change(data)))


def test_a_changed_byte_in_the_tar_names_the_file(template: Path) -> None:
    rewrite(template, lambda data: data.replace(b"#!/bin/sh", b"#!/bin/zh"))
    status, said = run("verify", template)
    lines = said.splitlines()
    assert status == 1
    assert lines[0].startswith("usr/bin/tool has sha256 ")
    assert [line.split()[2] for line in lines[1:4]] == ["sha256", "size", "sha256"]
    assert lines[3].startswith(f"{template.name} has sha256 ")
    assert "SHA256SUMS says" in lines[3]
    assert lines[4] == f"{beside(template, 2).name} is of another template"


@pytest.mark.parametrize("name", ["./../out", "/etc/out", "etc/out"])
def test_foreign_members_are_told_and_never_made(template: Path, name: str) -> None:
    extra = io.BytesIO()
    with tarfile.open(fileobj=extra, mode="w") as tar:
        tar.addfile(tarfile.TarInfo(name))
    rewrite(template, lambda data: data.rstrip(b"\0") + bytes(-len(data.rstrip(b"\0")) % 512) + extra.getvalue())
    assert " is not in the manifest\n" in run("verify", template)[1]


@pytest.mark.parametrize("harm", ["flip", "cut"])
def test_a_damaged_file_is_told_once(template: Path, harm: str) -> None:
    data = bytearray(template.read_bytes())
    data[len(data) // 2] ^= 1
    template.write_bytes(data if harm == "flip" else data[: len(data) // 2])
    status, said = run("verify", template)
    lines = said.splitlines()
    assert status == 1
    assert lines[0].startswith(f"{template.name} is damaged after byte ")
    assert not any("is missing in" in line for line in lines)
    assert any(line.startswith(f"{template.name} has sha256 ") for line in lines)


@pytest.mark.parametrize(
    ("number", "said"),
    [(2, "demo_1_amd64.cdx.json is missing"), (1, "demo_1_amd64.manifest.json: No such file or directory")],
)
def test_what_is_missing_beside_it_is_told(template: Path, number: int, said: str) -> None:
    beside(template, number).unlink()
    status, lines = run("verify", template)
    assert status == 1
    assert said in lines


def test_a_template_that_the_checksums_forgot(template: Path) -> None:
    template.with_name("SHA256SUMS").unlink()
    lines = run("verify", template)[1].splitlines()
    assert [line for line in lines if line.endswith("is not in SHA256SUMS")] == lines[:3]


@pytest.mark.parametrize("text", ["{}", '{"format": 1}', '{"format": 1, "files": [1]}', "x", "[" * 100_000])
@pytest.mark.parametrize("command", ["verify", "diff", "history"])
def test_a_damaged_manifest_is_one_line(template: Path, command: str, text: str) -> None:
    beside(template, 1).write_text(text)
    status, said = run(command, template, *([template] if command == "diff" else []))
    assert status == 1
    assert said.startswith(str(beside(template, 1)))
    assert said.endswith("build the template again")


ODD = st.none() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2) | st.just({"a": 1})


@pytest.mark.parametrize("command", ["verify", "diff", "history"])
@given(key=st.sampled_from(["size", "tar_size", "stages", "skipped", "files", "frames"]), value=ODD, deep=st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_manifest_holds_there_is_no_traceback(
    template: Path, command: str, key: str, value: object, deep: bool
) -> None:
    """A value of another kind in the manifest, or in the first of its rows; what is said then is one line."""
    good = beside(template, 1).read_text()
    told = json.loads(good)
    if deep and isinstance(told[key], list):
        told[key][0] = dict.fromkeys(told[key][0], value) if isinstance(told[key][0], dict) else value
    else:
        told[key] = value
    beside(template, 1).write_text(json.dumps(told))
    try:
        status, said = run(command, template, *([template] if command == "diff" else []))
    finally:
        beside(template, 1).write_text(good)
    assert status in (0, 1)
    assert command != "verify" or status == 1 or told == json.loads(good)
    if "damaged" in said:
        assert said == f"{beside(template, 1)}: is a damaged manifest; build the template again"


def test_diff_of_a_template_with_itself(template: Path) -> None:
    assert run("diff", template, template) == (0, "no difference\n")
    assert all(rows == [] for rows in json.loads(run("diff", template, template, "--json")[1]).values())


def test_diff_by_stage_deb_wheel_file_and_size(root: Path, template: Path, tmp_path: Path) -> None:
    (root / "usr/bin/tool").chmod(0o755)
    (root / "fifo").unlink()
    (root / "usr/new [red]").write_bytes(random.Random(1).randbytes(5000))
    settle(root)
    info = replace(
        INFO,
        stages=(replace(INFO.stages[0], digest="b" * 64), StageInfo("files", "files", "1" * 64, "c" * 64, 5)),
        debs=(replace(INFO.debs[0], version="1.1"),),
        wheels=(replace(INFO.wheels[0], blob=replace(INFO.wheels[0].blob, sha256="4" * 64)),),
        urls=(),
    )
    newer = make(root, tmp_path / "out", "2", info)
    told = json.loads(run("diff", template, newer, "--json")[1])
    assert told["stage"] == [
        {"name": "base", "a": {"digest": "a" * 64, "size": 5000}, "b": {"digest": "b" * 64, "size": 5000}},
        {"name": "files", "a": None, "b": {"digest": "c" * 64, "size": 5}},
    ]
    assert told["deb"] == [{"name": "curl", "a": [["1.0", "1" * 64]], "b": [["1.1", "1" * 64]]}]
    assert told["wheel"] == [{"name": "vllm", "a": [["0.10.2", "2" * 64]], "b": [["0.10.2", "4" * 64]]}]
    assert told["url"] == [{"name": "model", "a": [["model.bin", "3" * 64]], "b": None}]
    assert [row["name"] for row in told["file"]] == ["fifo", "usr/bin/tool", "usr/bin/zz-same", "usr/new [red]"]
    assert [row["name"] for row in told["size"]] == ["template", "unpacked"]
    rows = [line.split() for line in run("diff", template, newer)[1].splitlines()]
    assert ["stage", "files", "5", "B", "c" * 12] in rows
    assert ["deb", "curl", "1.0", "1.1"] in rows
    assert ["wheel", "vllm", "0.10.2", "2" * 12, "0.10.2", "4" * 12] in rows
    assert ["url", "model", "model.bin"] in rows
    assert ["file", "usr/bin/tool", "mode", "4755", "mode", "0755"] in rows
    assert ["file", "usr/new", "[red]", "file", "4.9", "KiB"] in rows


def test_diff_without_a_manifest_names_it(template: Path, tmp_path: Path) -> None:
    other = tmp_path / "other_1_amd64.tar.zst"
    other.touch()
    status, said = run("diff", template, other)
    assert status == 1
    assert said.startswith(f"{tmp_path}/other_1_amd64.manifest.json: No such file")


@pytest.mark.parametrize("command", ["verify", "diff", "history", "licences"])
def test_what_is_no_template_is_wrong_use(template: Path, tmp_path: Path, command: str) -> None:
    more = [template] if command == "diff" else []
    status, said = run(command, *more, tmp_path / "other_1_amd64.tar.zst")
    assert (status, said.partition(";")[0]) == (2, f"{tmp_path}/other_1_amd64.tar.zst: there is no such template")
    status, said = run(command, *more, beside(template, 1))
    assert (status, said.partition(";")[0]) == (2, f"{beside(template, 1)}: is no template")
