"""What is told of two templates that should be the same and are not."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from builder.pack import Info, Layer, StageInfo, pack
from builder.rebuild.differ import explain
from builder.tree import scan

EPOCH = 1_760_572_800
INFO = Info("demo", "", "d" * 64, "debian", "bookworm")


@pytest.fixture(autouse=True)
def no_diffoscope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


def template(folder: Path, files: dict[str, bytes]) -> Path:
    """A template whose first layer is always the same and whose second one holds `files`."""
    layers, stages = [], []
    for name, content in (("base", {"etc/hosts": b"localhost\n"}), ("files", files)):
        root = folder / name
        for path, data in content.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(data)
        for path in (root, *root.rglob("*")):
            os.utime(path, (EPOCH, EPOCH))
        index = scan(root)
        layers.append(Layer(name, index, root))
        stages.append(StageInfo(name, name, "1" * 64, index.digest, index.size))
    info = replace(INFO, stages=tuple(stages))
    about = {"name": "demo", "version": "1", "architecture": "amd64", "level": 1, "epoch": EPOCH}
    return pack(layers, folder / "artifacts", info=info, jobs=1, **about).path


def test_the_first_stage_the_files_and_the_lines_are_named(tmp_path: Path) -> None:
    one = template(tmp_path / "one", {"etc/motd": b"built\nhere\n", "etc/same": b"same"})
    other = template(tmp_path / "other", {"etc/motd": b"built\nthere\n", "etc/same": b"same"})
    stage, files, shown = explain(one, other)
    assert (stage, files) == ("files", ("etc/motd",))
    assert {"-here", "+there"} <= set(shown.splitlines())


def test_of_bytes_that_are_no_text_the_place_is_told(tmp_path: Path) -> None:
    one = template(tmp_path / "one", {"lib.so": b"\xff" * 5000})
    other = template(tmp_path / "other", {"lib.so": b"\xff" * 4000 + b"\xfe" * 1000})
    assert "'lib.so': differs from byte 4,000 on (5,000 and 5,000 bytes)" in explain(one, other)[2]


def test_a_file_that_only_one_has_is_told(tmp_path: Path) -> None:
    one = template(tmp_path / "one", {"a": b"", "b": b""})
    other = template(tmp_path / "other", {"a": b""})
    _, files, shown = explain(one, other)
    assert files == ("b",)
    assert shown == "'b': only in the first template"


def test_a_terminal_obeys_nothing_of_what_is_shown(tmp_path: Path) -> None:
    one = template(tmp_path / "one", {"etc/motd": b"\x1b[2J\n"})
    other = template(tmp_path / "other", {"etc/motd": b"\x1b[3J\n"})
    assert all(line.isprintable() for line in explain(one, other)[2].splitlines())
