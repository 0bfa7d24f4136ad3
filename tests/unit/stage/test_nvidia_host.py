"""The host's driver: a mount point, and what makes its content found at start."""

from __future__ import annotations

import configparser
import os
import subprocess
from pathlib import Path

import pytest

from builder.errors import BuilderError
from builder.lock.model import Lock
from builder.recipe.model import Distribution, Recipe, Stage
from builder.stage.kind import Context, Inputs
from builder.stage.nvidia_host import KIND, MOUNT_POINT

RECIPE = Recipe(
    Path("/r"), "r", "1", "", (), 1, 3, Distribution("debian", "bookworm", "amd64", "", "", ()), None, (), (), ()
)
STAGE = Stage("driver", KIND.name, {}, None, "", 1, 1)


def context(upper: Path, *, lower: Path | None = None) -> Context:
    def find(path: str) -> Path | None:
        found = (lower or upper) / path.lstrip("/")
        return found if found.exists() else None

    def run(*argv: object, **options: object) -> None:
        raise AssertionError("runs nothing")

    upper.mkdir()
    return Context(RECIPE, STAGE, Inputs({}), upper, upper, lambda b: upper, lambda n: upper, run, find, 1)


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    upper = tmp_path / "upper"
    KIND.build(context(upper))
    return upper


def test_the_folder_is_empty_and_the_linker_looks_into_it_first(layer: Path) -> None:
    assert list((layer / MOUNT_POINT[1:]).iterdir()) == []
    assert (layer / "etc/ld.so.conf.d/00-nvidia-host.conf").read_text() == f"{MOUNT_POINT}\n"


def test_the_unit_runs_before_the_server_and_only_with_a_driver(layer: Path) -> None:
    enabled = layer / "etc/systemd/system/multi-user.target.wants/nvidia-host-driver.service"
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(layer / os.readlink(enabled)[1:])
    assert unit["Unit"]["ConditionPathExists"] == f"{MOUNT_POINT}/libcuda.so.1"
    assert unit["Unit"]["Before"] == "vllm.service"
    assert unit["Service"]["ExecStart"].split()[0] == "/sbin/ldconfig"


@pytest.mark.parametrize("times", [1, 2])
def test_shells_find_nvidia_smi_once_and_last(layer: Path, times: int) -> None:
    source = f". {layer}/etc/profile.d/nvidia-host.sh; " * times
    said = subprocess.run(
        ["sh", "-euc", source + "echo $PATH"], env={"PATH": "/usr/bin:/bin"}, capture_output=True, check=True
    )
    assert said.stdout.decode() == f"/usr/bin:/bin:{MOUNT_POINT}/bin\n"


def test_nothing_is_locked_and_nothing_is_asked_for() -> None:
    assert KIND.requests(RECIPE, STAGE) == ()
    assert KIND.inputs(RECIPE, STAGE, Lock("r", "")) == Inputs({})


def test_a_folder_of_the_layers_below_keeps_its_mode(tmp_path: Path) -> None:
    below = tmp_path / "below/etc/profile.d"
    below.mkdir(parents=True)
    below.chmod(0o2775)
    upper = tmp_path / "upper"
    KIND.build(context(upper, lower=tmp_path / "below"))
    assert (upper / "etc/profile.d").stat().st_mode & 0o7777 == 0o2775


def test_what_is_there_already_is_named(tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    given = context(upper)
    KIND.build(given)
    with pytest.raises(BuilderError, match=r"00-nvidia-host\.conf: File exists"):
        KIND.build(given)
