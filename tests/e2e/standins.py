"""Stand-ins for NVIDIA's files: packages of the same form as the published ones, made here, with nothing of NVIDIA's.

The builder takes nothing but the published sha256. So a copy of it is made whose tables of NVIDIA's files have those of
the stand-ins; nothing else differs.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import struct
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import zstandard
from conftest import HOUSE
from project import Project

LIBRARIES = ("libcuda", "libnvidia-ml", "libnvidia-ptxjitcompiler")
RELEASE = "12.8.1"
_TABLES = "builder/data"


def library(soname: str) -> bytes:
    """The smallest shared object for x86-64 that ldconfig takes: a header, one segment, a dynamic section."""
    names = b"\0" + soname.encode() + b"\0"
    start = 64 + 2 * 56
    dynamic = start + (len(names) + 7) // 8 * 8
    entries = struct.pack("<8Q", 14, 1, 5, start, 10, len(names), 0, 0)  # DT_SONAME, DT_STRTAB, DT_STRSZ, DT_NULL
    size = dynamic + len(entries)
    header = b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 2, 64, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, size, size, 4096)
    table = struct.pack("<IIQQQQQQ", 2, 6, dynamic, dynamic, dynamic, len(entries), len(entries), 8)
    return (header + load + table + names).ljust(dynamic, b"\0") + entries


def tar(top: str, members: Mapping[str, bytes | str], compression: str = "") -> bytes:
    """A tar of files (bytes) and links (text)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(f"{top}/{name}")
            info.mtime, info.mode = 1_750_000_000, 0o755
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
            else:
                info.size = len(content)
            archive.addfile(info, None if isinstance(content, str) else io.BytesIO(content))
    return buffer.getvalue()


def driver(version: str) -> bytes:
    """A driver package with the libraries that a template must have, and some of what must stay out of it."""
    listed = ["NVIDIA Driver", version, " ", "nvidia ", " ", " ", "k/", "k/"]
    files: dict[str, bytes | str] = {"LICENSE": b"terms", "nvidia-smi": b"#!smi"}
    left = ("kernel/nvidia/nv.c", "nvidia_drv.so", f"32/libcuda.so.{version}", "supported-gpus/LICENSE")
    files |= dict.fromkeys(left, b"left")
    listed += [
        "kernel/nvidia/nv.c 0644 KERNEL_MODULE_SRC INHERIT_PATH_DEPTH:1 MODULE:resman",
        "nvidia_drv.so 0755 XMODULE_SHARED_LIB drivers/ MODULE:xdriver",
        f"./32/libcuda.so.{version} 0755 CUDA_LIB COMPAT32 / MODULE:gpgpu",
    ]
    for stem in LIBRARIES:
        files[f"{stem}.so.{version}"] = library(f"{stem}.so.1")
        listed += [
            f"{stem}.so.{version} 0755 CUDA_LIB NATIVE / MODULE:m",
            f"{stem}.so.1 0000 CUDA_SYMLINK NATIVE / {stem}.so.{version} MODULE:m",
            f"{stem}.so 0000 CUDA_SYMLINK NATIVE / {stem}.so.1 MODULE:m",
        ]
    listed += [
        "LICENSE 0444 DOCUMENTATION NVIDIA_GLX-1.0/ MODULE:m",
        "supported-gpus/LICENSE 0444 DOCUMENTATION NVIDIA_GLX-1.0/supported-gpus/ MODULE:m",
        "nvidia-smi 0755 UTILITY_BINARY MODULE:m",
    ]
    files[".manifest"] = "\n".join([*listed, ""]).encode()
    header = b"#! /bin/sh\nCRCsum=0\nMD5=0\nskip=6\nexit 0\n"
    return header + zstandard.ZstdCompressor().compress(tar(".", files))


def component(name: str) -> bytes:
    """An archive of one component of the toolkit: its licence, a header, a library with links, and nvcc's programs."""
    members: dict[str, bytes | str] = {
        "LICENSE": b"terms",
        f"include/{name}.h": f"/* {name} */".encode(),
        f"lib/lib{name}.so.12.8.90": library(f"lib{name}.so.12"),
        f"lib/lib{name}.so.12": f"lib{name}.so.12.8.90",
        f"lib/lib{name}.so": f"lib{name}.so.12",
    }
    if name == "cuda_nvcc":
        members |= {"bin/nvcc": b"#!nvcc", "bin/ptxas": b"#!ptxas", "nvvm/lib64/libnvvm.so.4": library("libnvvm.so.4")}
    return tar(f"{name}-linux-x86_64-12.8.90-archive", members, "xz")


def with_stand_ins(of: Project, *versions: str) -> Project:
    """`of` with a builder that knows stand-ins for these drivers and for every component, all in the store."""
    copy = of.user.home / "builder-with-stand-ins"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(HOUSE / "builder", copy / "builder", ignore=ignored, dirs_exist_ok=True)

    def drivers(table: dict[str, Any]) -> None:
        for version in versions:
            table["drivers"][version] |= _kept(of.store, driver(version))

    def components(table: dict[str, Any]) -> None:
        for name, entry in table["components"].items():
            entry |= _kept(of.store, component(name))

    _change(copy / _TABLES / "nvidia-drivers.json", drivers)
    _change(copy / _TABLES / f"cuda-redist-{RELEASE}.json", components)
    packages = of.user.env.get("PYTHONPATH", "")
    env = {**of.user.env, "PYTHONPATH": f"{copy}:{packages}".rstrip(":")}
    return replace(of, user=replace(of.user, env=env))


def _change(path: Path, change: Any) -> None:
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))


def _kept(store: Path, content: bytes) -> dict[str, Any]:
    """The bytes as a blob of the store, and what a table says of them."""
    sha256 = hashlib.sha256(content).hexdigest()
    place = store / "blobs" / "sha256" / sha256[:2] / sha256
    place.parent.mkdir(parents=True, exist_ok=True)
    if not place.exists():
        place.write_bytes(content)
        place.chmod(0o444)
    return {"sha256": sha256, "size": len(content)}
