"""The locks of the project's recipes against what NVIDIA published."""

from __future__ import annotations

from pathlib import Path

import pytest

from builder import lock as locks
from builder.recipe import load
from builder.stage import KINDS, published

HERE = Path(__file__).parents[3]


def test_the_lock_has_the_published_files_of_nvidia() -> None:
    recipe = load(HERE / "recipes/vllm-blackwell", KINDS, "nvidia")
    stages = {stage.kind: stage for stage in recipe.stages}
    version = stages["nvidia-runfile"].params["Version"]
    redist = stages["nvidia-redist"].params
    known = published.components(redist["Release"])
    requests = [published.drivers()[version], *(known[name].request for name in redist["Components"])]
    urls = locks.read(HERE / "locks/vllm-blackwell").urls
    found = {request.id: urls[request.id] for request in requests}
    assert {name: (blob.sha256, blob.size, blob.urls) for name, blob in found.items()} == {
        request.id: (request.sha256, request.size, (request.url,)) for request in requests
    }
    assert {name for name in urls if name.startswith(("nvidia-", "cuda-"))} == found.keys()


@pytest.mark.parametrize("version", ["580.76.05", "580.95.05"])
def test_the_drivers_that_are_written_about_are_known(version: str) -> None:
    request = published.drivers()[version]
    assert (
        request.url
        == f"https://us.download.nvidia.com/XFree86/Linux-x86_64/{version}/NVIDIA-Linux-x86_64-{version}.run"
    )
    assert request.sha256
    assert len(request.sha256) == 64
