"""The mount entries that a deploy writes, in a real unprivileged container."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

import pytest
from conftest import User
from container import Container, booted, new_bridge, open_folder
from project import STORE, project

from builder.deploy import gpu
from builder.deploy.model import Folder

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.lxc,
    pytest.mark.timeout(300),
    pytest.mark.skipif(shutil.which("lxc-start") is None, reason="needs LXC"),
]


@pytest.fixture(scope="module")
def container(root_user: User, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """smoke, started with the driver's folder, models in folders of all sorts, and a folder that is not there."""
    made = project(root_user, tmp_path_factory.mktemp("mounts"), "smoke", store=STORE)
    made.json("template", "recipes/smoke")
    with open_folder() as top, new_bridge() as bridge:
        odd, pool, driver = top / "odd\tname of \\ models", top / "pool", top / "nvidia/1"
        for folder in (odd, pool / "dataset", driver):
            folder.mkdir(parents=True)
        (odd / "model").write_text("odd")
        (driver / "libcuda.so.1").write_text("simulated")
        (top / "nvidia/current").symlink_to("1")
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(pool / "dataset")], check=True)
        try:
            (pool / "dataset/model").write_text("mounted inside")
            folders = [
                Folder(str(odd), "/srv/odd models"),
                Folder(str(pool), "/models"),
                Folder(str(top / "no"), "/no"),
            ]
            lines = gpu.mounts(str(top / "nvidia/current"), folders)
            mounts = [line.removeprefix("lxc.mount.entry: ") for line in lines]
            with booted(next(made.artifacts.glob("*.tar.zst")), bridge, mounts=mounts) as container:
                yield container
        finally:
            subprocess.run(["umount", str(pool / "dataset")], check=True)


def test_names_with_blanks_tabs_and_backslashes_arrive(container: Container) -> None:
    assert container.run("cat", "/srv/odd models/model") == "odd"


def test_a_folder_comes_with_what_is_mounted_inside_it(container: Container) -> None:
    assert container.run("cat", "/models/dataset/model") == "mounted inside"


def test_nothing_can_be_written(container: Container) -> None:
    for place in ("/srv/odd models/new", "/models/new", "/models/dataset/model", "/usr/lib/nvidia-host/new"):
        assert container.try_run("sh", "-c", 'echo > "$0"', place).returncode != 0


def test_the_drivers_folder_is_where_templates_expect_it(container: Container) -> None:
    assert container.run("cat", "/usr/lib/nvidia-host/libcuda.so.1") == "simulated"


def test_a_missing_folder_is_an_empty_one(container: Container) -> None:
    assert container.run("ls", "-A", "/no") == ""
