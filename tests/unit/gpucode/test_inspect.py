"""What a user of `builder inspect --gpu-code` sees, of libraries, folders and archives."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import zstandard
from click.testing import CliRunner, Result
from fatbins import Code, container, elf

from builder.commands.inspect import inspect
from builder.errors import BuilderError, UsageError

FAST = container(Code("cubin", 90, payload=b"x" * 2048), Code("cubin", 120, payload=b"y" * 1024))
SLOW = container(Code("ptx", 80, isa=(8, 7), payload=b"z" * 4096))
NEVER = container(Code("cubin", 90, "a"))
TEXT = bytes(4096)
TREE = {
    "venv/lib/fast.so": elf({".text": TEXT, ".nv_fatbin": FAST}),
    "venv/lib/mixed.so": elf({".text": TEXT, ".nv_fatbin": FAST + SLOW + NEVER}),
    "venv/lib/host.so": elf({".text": TEXT}),
    "venv/readme.txt": b"\x50\xed" * 3000,
    "kernels.fatbin": SLOW,
}

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.setenv("BUILDER_STORE", str(tmp_path / "store"))

    def invoke(*arguments: str | Path) -> Result:
        words = ["--gpu-code", *map(str, arguments)]
        return CliRunner().invoke(inspect, words, catch_exceptions=False, standalone_mode=False)

    return invoke


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for name, data in TREE.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    (root / "link.so").symlink_to("venv/lib/fast.so")
    (root / "folder").symlink_to("venv")
    os.mkfifo(root / "pipe")
    return root


def told(run: Run, *arguments: str | Path) -> Any:
    done = run(*arguments, "--json")
    assert not done.return_value, done.output
    return json.loads(done.stdout)


def paths(found: Mapping[str, Any]) -> list[str]:
    return [library["path"] for library in found["libraries"]]


def test_a_folder_by_library_and_architecture(run: Run, tree: Path) -> None:
    found = told(run, tree)
    assert paths(found) == ["kernels.fatbin", "venv/lib/fast.so", "venv/lib/mixed.so"]
    assert found["libraries"][2] == {
        "path": "venv/lib/mixed.so",
        "size": len(TREE["venv/lib/mixed.so"]),
        "problem": None,
        "units": 3,
        "architectures": [
            {"name": "sm_90", "entries": 1, "size": 2048},
            {"name": "sm_90a", "entries": 1, "size": 8},
            {"name": "sm_120", "entries": 1, "size": 1024},
            {"name": "compute_80", "entries": 1, "size": 4096},
        ],
    }
    assert found["architectures"][0] == {"name": "sm_90", "entries": 2, "size": 4096}


def test_judged_for_a_target(run: Run, tree: Path) -> None:
    runs = {library["path"]: library["runs"] for library in told(run, tree, "--target", "12.0")["libraries"]}
    assert runs["venv/lib/fast.so"] == {"exact": 1, "minor": 0, "ptx": 0, "too new": 0, "nothing": 0}
    assert runs["venv/lib/mixed.so"] == {"exact": 1, "minor": 0, "ptx": 1, "too new": 0, "nothing": 1}
    older = told(run, tree, "--target", "12.0", "--ptx-isa", "8.6")["libraries"][0]["runs"]
    assert older == {"exact": 0, "minor": 0, "ptx": 0, "too new": 1, "nothing": 0}


def test_by_translation_unit(run: Run, tree: Path) -> None:
    library = told(run, tree / "venv/lib/mixed.so", "--target", "12.0", "--units")["libraries"][0]
    assert library["path"] == "mixed.so"
    assert [(unit["runs"], unit["takes"]) for unit in library["by_unit"]] == [
        ("exact", "sm_120"),
        ("ptx", "compute_80"),
        ("nothing", None),
    ]
    assert library["by_unit"][1]["entries"] == [{"name": "compute_80", "size": 4096, "unpacked": 4096, "isa": "8.7"}]
    lines = run(tree / "venv/lib/mixed.so", "--target", "12.0", "--units").stdout.splitlines()
    assert lines[0].split() == ["library", "unit", "at", "runs", "takes", "size", "of"]
    assert lines[1].split()[2:] == ["exact", "sm_120", "1.0", "KiB", "sm_90", "sm_120"]
    assert lines[3].split()[2:] == ["nothing", "sm_90a"]


def test_tables(run: Run, tree: Path) -> None:
    lines = [line.split() for line in run(tree, "--target", "12.0").stdout.splitlines()]
    assert lines[0] == ["library", "units", "GPU", "code", "exact", "minor", "ptx", "nothing"]
    assert lines[2] == ["venv/lib/fast.so", "1", "3.0", "KiB", "1"]
    assert ["compute_80", "2", "8.0", "KiB"] in lines
    lines = [line.split() for line in run(tree).stdout.splitlines()]
    assert lines[2] == ["venv/lib/fast.so", "1", "3.0", "KiB", "sm_90", "sm_120"]
    assert run(tree / "venv/lib/host.so").stdout == f"{tree}/venv/lib/host.so: no GPU code\n"


def test_archives_say_the_same_as_the_folder(run: Run, tree: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.add(tree, arcname=".")
    packed = zstandard.ZstdCompressor().compress((tmp_path / "t.tar").read_bytes())
    (tmp_path / "t.tar.zst").write_bytes(packed)
    with zipfile.ZipFile(tmp_path / "t.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in TREE.items():
            archive.writestr(name, data)
    from_folder = told(run, tree, "--target", "12.0", "--units")
    for archive_name in ("t.tar", "t.tar.zst", "t.whl"):
        found = told(run, tmp_path / archive_name, "--target", "12.0", "--units")
        assert found == from_folder, archive_name
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file() and path.name == "file"] == []


def test_what_cannot_be_read_is_said_and_fails(run: Run, tree: Path) -> None:
    damaged = TREE["venv/lib/fast.so"].replace(b"\x50\xed\x55\xba", b"oops")
    (tree / "venv/lib/fast.so").write_bytes(damaged)
    done = run(tree, "--target", "12.0")
    assert done.return_value == 1
    assert "venv/lib/fast.so is not readable: no container of a known layout at 0x1040 in .nv_fatbin" in done.stdout
    assert "venv/lib/mixed.so" in done.stdout
    found = json.loads(run(tree, "--json").stdout)
    assert [bool(library["problem"]) for library in found["libraries"]] == [False, True, False]


def test_names_in_archives_cannot_steer_the_terminal(run: Run, tmp_path: Path) -> None:
    info = tarfile.TarInfo("\x1b[2Jevil\n.so")
    info.size = len(TREE["venv/lib/fast.so"])
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        tar.addfile(info, io.BytesIO(TREE["venv/lib/fast.so"]))
    said = run(tmp_path / "t.tar").stdout
    assert "?[2Jevil?.so" in said
    assert "\x1b" not in said


def test_bad_input_is_one_line(run: Run, tree: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.tar.zst").write_bytes(zstandard.ZstdCompressor().compress(bytes(10240))[:-3])
    for place, said in (
        (tmp_path / "cut.tar.zst", "not a sound archive"),
        (tree / "venv/readme.txt", "not a sound archive"),
        (tree / "pipe", "is no file and no folder"),
    ):
        with pytest.raises(BuilderError, match=said) as caught:
            run(place)
        assert str(caught.value).startswith(str(place))
    for options in (["--units"], ["--ptx-isa", "8.7"], ["--target", "12"], ["--target", "12.0", "--ptx-isa", "new"]):
        with pytest.raises(UsageError):
            run(tree, *options)
