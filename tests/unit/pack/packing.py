"""A small template to be: what is told of it, trees of files, and how they are packed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from builder.lock.model import Blob, Deb, Wheel
from builder.pack import Earlier, Info, Layer, Packed, StageInfo, pack
from builder.recipe.model import Target, Venv
from builder.tree import scan

EPOCH = 1_760_572_800
BLOB = Blob("a" * 64, 10, "curl_7.88.1-10_amd64.deb", ("http://deb.debian.org/debian/pool/main/c/curl/curl.deb",))
WHEEL = Blob("b" * 64, 20, "vllm-0.10.2-cp38-abi3-manylinux1_x86_64.whl", ("https://files.pythonhosted.org/v.whl",))
INFO = Info(
    recipe="demo",
    variant="pypi",
    recipe_digest="d" * 64,
    distribution="debian",
    release="bookworm",
    stages=(StageInfo("base", "debian", "k" * 64, "e" * 64, 5),),
    debs=(Deb("curl", "7.88.1-10", "amd64", "bookworm", BLOB),),
    wheels=(Wheel("vllm", "0.10.2", WHEEL, "2025-09-13T00:00:00Z"),),
    urls=(("driver", Blob("c" * 64, 30, "driver.run", ("https://us.download.nvidia.com/driver.run",))),),
    target=Target("Card", "12.0", 2, 16311),
    venvs=(Venv("vllm", "/opt/vllm", "/usr/bin/python3.11", ("vllm==0.10.2",), (), (), "2025-10-16T00:00:00Z", ""),),
)


def tree_of(root: Path, files: dict[str, bytes]) -> Path:
    root.mkdir(parents=True)
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    for path in [root, *root.rglob("*")]:
        os.utime(path, (EPOCH, EPOCH))
    return root


def make(trees: list[Path], dest: Path, **options: Any) -> Packed:
    return pack_layers([Layer(tree.name, scan(tree), tree) for tree in trees], dest, **options)


def pack_layers(layers: list[Layer], dest: Path, previous: Earlier | Path | None = None, **options: Any) -> Packed:
    """`layers` packed, over the template `previous` as it was left when it was made here."""
    settings: dict[str, Any] = {"version": "1", "level": 3, "epoch": EPOCH, "info": INFO, "jobs": 2} | options
    earlier = left(previous) if isinstance(previous, Path) else previous
    packed = pack(layers, dest, name="demo", architecture="amd64", earlier=earlier, **settings)
    record_of(packed.path).write_text(json.dumps(packed.left.told()))
    return packed


def left(template: Path) -> Earlier | None:
    """What was told of `template` when it was made."""
    record = record_of(template)
    return Earlier.load(template, json.loads(record.read_text())) if record.exists() else None


def record_of(template: Path) -> Path:
    """Where these tests keep what is told of a template: not beside it."""
    return template.parent.with_name(f"{template.parent.name}-{template.name}.left")
