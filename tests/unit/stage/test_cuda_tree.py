"""Where files of NVIDIA's wheels go in a toolkit."""

from __future__ import annotations

from pathlib import Path

import pytest

from builder.errors import BuilderError
from builder.stage.cuda_tree import Part, layout, library_links, parts

PLATFORM = "targets/x86_64-linux"


def put(folder: Path, path: str, text: str = "") -> None:
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_text(text)


def test_every_file_has_one_place_and_packaging_none(tmp_path: Path) -> None:
    site = tmp_path / "site"
    for path in (
        "__init__.py",
        "cublas/lib/libcublas.so.12",
        "cuda_nvcc/bin/ptxas",
        "cuda_nvcc/include/__init__.py",
        "cuda_nvcc/include/__pycache__/__init__.cpython-311.pyc",
        "cuda_nvcc/include/crt/host.h",
    ):
        put(site / "nvidia", path)
    found = layout(parts(site, "/opt/x/site"))
    assert {path: origin.installed for path, origin in found.items()} == {
        "bin/ptxas": "/opt/x/site/nvidia/cuda_nvcc/bin/ptxas",
        f"{PLATFORM}/include/crt/host.h": "/opt/x/site/nvidia/cuda_nvcc/include/crt/host.h",
        f"{PLATFORM}/lib/libcublas.so.12": "/opt/x/site/nvidia/cublas/lib/libcublas.so.12",
    }
    assert all(origin.installed is None for origin in layout(parts(site, None)).values())


def test_the_same_header_twice_is_fine_only_with_the_same_bytes(tmp_path: Path) -> None:
    for name, text in (("a", "1"), ("b", "1"), ("c", "2")):
        put(tmp_path / "nvidia", f"{name}/include/x", text)
    one, two, three = (Part(tmp_path / "nvidia" / name, None) for name in "abc")
    assert layout([one, two])[f"{PLATFORM}/include/x"].place == tmp_path / "nvidia/a/include/x"
    with pytest.raises(BuilderError, match=f"{PLATFORM}/include/x differs between a and c"):
        layout([one, three])


def test_links_for_the_linker() -> None:
    paths = ["lib/libcudart.so.12", "lib/libcupti.so.12", "lib/libcupti.so", "lib/libnvrtc-builtins.so.12.8", "lib/x.a"]
    assert library_links(paths) == {
        "lib/libcudart.so": "libcudart.so.12",
        "lib/libnvrtc-builtins.so": "libnvrtc-builtins.so.12.8",
    }


@pytest.mark.parametrize("place", ["nvidia", "nvidia/a", "nvidia/a/include", "nvidia/a/include/x"])
def test_a_link_in_the_template_does_not_lead_to_the_host(tmp_path: Path, place: str) -> None:
    host = tmp_path / "host"
    host.mkdir()
    site = tmp_path / "site"
    (site / place).parent.mkdir(parents=True)
    (site / place).symlink_to(host)
    with pytest.raises(BuilderError, match="is a symbolic link, which no wheel brings"):
        layout(parts(site, None))
