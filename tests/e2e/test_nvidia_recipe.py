"""The stages of vllm-blackwell's `nvidia` variant with stand-ins for NVIDIA's files: locked, built, changed, judged."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import tomli
from conftest import HOUSE, User
from project import STORE, Project, project
from standins import with_stand_ins

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

VERSION = "580.76.05"
NEWER = "580.95.05"
OFFLINE = ("unshare", "--net")
LIB = "usr/lib/x86_64-linux-gnu"
CUDA = "usr/local/cuda-12.8"


@pytest.fixture(scope="module")
def small(root_user: User, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The base of `smoke`, and over it the driver and the toolkit as the real recipe writes them."""
    made = with_stand_ins(project(root_user, tmp_path_factory.mktemp("nvidia"), "smoke"), VERSION, NEWER)
    recipe = made.folder / "recipes" / "smoke" / "recipe.toml"
    recipe.write_text(f"{recipe.read_text()}\n{nvidia_stages()}")
    return made


def nvidia_stages() -> str:
    """The driver and the toolkit of the real recipe, as stages of every variant."""
    _, first, second, _ = (HOUSE / "recipes/vllm-blackwell/recipe.toml").read_text().split("[[Variant.nvidia.Stage]]\n")
    return f"[[Stage]]\n{first}[[Stage]]\n{second}"


def files(template: Path) -> dict[str, dict[str, Any]]:
    manifest = template.with_name(template.name.removesuffix(".tar.zst") + ".manifest.json")
    return {row["path"]: row for row in json.loads(manifest.read_text())["files"]}


def test_it_locks_without_a_network_builds_and_changes_its_driver(small: Project) -> None:
    locked = small.json("lock", "recipes/smoke", prefix=OFFLINE)
    assert sorted(change["name"] for change in locked["changes"]) == sorted(asked(small.folder / "recipes/smoke"))
    template = Path(small.json("template", "recipes/smoke")["path"])
    there = files(template)
    assert there[f"{LIB}/libcuda.so.{VERSION}"]["mode"] == "0755"
    assert there[f"{LIB}/libcuda.so.1"]["target"] == f"libcuda.so.{VERSION}"
    assert {"usr/bin/nvidia-smi", "usr/share/doc/nvidia-driver/LICENSE", f"{CUDA}/bin/nvcc"} <= there.keys()
    left = hashlib.sha256(b"left").hexdigest()
    assert not [path for path, row in there.items() if row.get("sha256") == left]
    for name in components(small.folder / "recipes/smoke"):
        assert there[f"{CUDA}/targets/x86_64-linux/lib/lib{name}.so.12"]["target"] == f"lib{name}.so.12.8.90"
        assert f"{CUDA}/share/doc/{name}/LICENSE" in there
    assert not small.builder("verify", str(template)).returncode

    judged = small.json("licences", str(template))
    by_name = {part["name"]: part["may"] for part in judged["parts"]}
    assert judged["may_be_passed_on"] == "own use only"
    assert by_name[f"nvidia-driver-{VERSION}"] == "unmodified"
    assert by_name["cuda-12.8.1-cuda_nvcc"] == by_name[f"{CUDA}/bin/nvcc"] == "own use only"
    assert by_name["cuda-12.8.1-libcublas"] == "inside an application"

    before = (small.folder / "recipes/smoke/recipe.toml").read_text()
    moved = small.json("lock", "recipes/smoke", "--driver", NEWER, prefix=OFFLINE)
    assert {change["name"] for change in moved["changes"]} == {f"nvidia-driver-{VERSION}", f"nvidia-driver-{NEWER}"}
    after = (small.folder / "recipes/smoke/recipe.toml").read_text()
    assert after == before.replace(f'Version = "{VERSION}"', f'Version = "{NEWER}"')
    there = files(Path(small.json("template", "recipes/smoke")["path"]))
    assert f"{LIB}/libcuda.so.{NEWER}" in there
    assert f"{LIB}/libcuda.so.{VERSION}" not in there


def test_the_published_file_is_taken_and_no_other(small: Project) -> None:
    """The builder itself, whose tables are the published ones, refuses the lock of the stand-ins."""
    small.json("lock", "recipes/smoke", prefix=OFFLINE)
    plain = Project(small.folder, User(**{**vars(small.user), "env": {**small.user.env, "PYTHONPATH": ""}}))
    done = plain.builder("build", "recipes/smoke")
    assert done.returncode == 1
    assert b"the lock is not of this recipe any more" in done.stderr


def asked(recipe: Path) -> list[str]:
    """What the lock needs for the two stages, by name."""
    told = tomli.loads((recipe / "recipe.toml").read_text())["Stage"]
    versions = [stage["Version"] for stage in told if stage["Kind"] == "nvidia-runfile"]
    return [f"nvidia-driver-{versions[0]}", *(f"cuda-12.8.1-{name}" for name in components(recipe))]


def components(recipe: Path) -> list[str]:
    told = tomli.loads((recipe / "recipe.toml").read_text())["Stage"]
    return [name for stage in told if stage["Kind"] == "nvidia-redist" for name in stage["Components"]]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_whole_variant(root_user: User, tmp_path: Path) -> None:
    """All of vllm-blackwell's `nvidia` variant, real wheels and all, checked by its profiles."""
    if shutil.disk_usage(tmp_path).free < 20 << 30:
        pytest.skip("takes 15 GB of disk, 20 are not free")
    made = project(root_user, tmp_path, "vllm-blackwell", store=tmp_path / "store")
    link_blobs(made.store, made.folder / "locks/vllm-blackwell")
    made = with_stand_ins(made, VERSION)
    made.json("lock", "recipes/vllm-blackwell", prefix=OFFLINE)
    template = Path(made.json("template", "recipes/vllm-blackwell", "--variant", "nvidia")["path"])
    there = files(template)
    assert {f"{LIB}/libcuda.so.{VERSION}", f"{CUDA}/bin/nvcc", "opt/vllm/bin/vllm"} <= there.keys()
    assert made.json("licences", str(template))["may_be_passed_on"] == "own use only"
    found = made.json("check", str(template), "--quick")
    assert found["counts"]["error"] == 0
    shutil.rmtree(tmp_path)


def link_blobs(store: Path, lock: Path) -> None:
    """Give `store` the machine's own blobs of a lock, by hard links where that is possible."""
    from builder.lock import read
    from builder.store.tools import tool_blobs

    held = read(lock)
    blobs = [*tool_blobs(), *held.urls.values()]
    blobs += [deb.blob for debs in held.debs.values() for deb in debs]
    blobs += [wheel.blob for wheels in held.venvs.values() for wheel in wheels]
    for sha256 in {blob.sha256 for blob in blobs}:
        source = STORE / "blobs" / "sha256" / sha256[:2] / sha256
        target = store / "blobs" / "sha256" / sha256[:2] / sha256
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.exists():
            try:
                os.link(source, target)
            except OSError:
                shutil.copy2(source, target)
