"""The locks of the project's recipes against what NVIDIA published."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from builder import lock as locks
from builder.recipe import load
from builder.stage import KINDS, published

HERE = Path(__file__).parents[3]
PUBLISHED = Path(__file__).with_name("nvidia-published.json")


def test_the_lock_has_the_published_files_of_nvidia_and_no_others() -> None:
    urls = locks.read(HERE / "locks/vllm-blackwell").urls
    found = {url: (blob.sha256, blob.size) for blob in urls.values() for url in blob.urls if "nvidia.com/" in url}
    files = json.loads(PUBLISHED.read_text())["files"]
    assert found == {url: (file["sha256"], file["size"]) for url, file in files.items()}


def test_the_lock_has_all_that_the_variant_takes_of_nvidia() -> None:
    recipe = load(HERE / "recipes/vllm-blackwell", KINDS, "nvidia")
    asked = [
        request
        for stage in recipe.stages
        if stage.kind in ("nvidia-runfile", "nvidia-redist")
        for request in KINDS[stage.kind].requests(recipe, stage)
    ]
    urls = locks.read(HERE / "locks/vllm-blackwell").urls
    assert {request.id for request in asked} == {name for name in urls if name.startswith(("nvidia-", "cuda-"))}
    assert len(asked) == 17


@pytest.mark.parametrize("version", ["580.76.05", "580.95.05"])
def test_the_drivers_that_are_written_about_are_known(version: str) -> None:
    request = published.drivers()[version]
    assert (
        request.url
        == f"https://us.download.nvidia.com/XFree86/Linux-x86_64/{version}/NVIDIA-Linux-x86_64-{version}.run"
    )
    assert request.sha256
    assert len(request.sha256) == 64
