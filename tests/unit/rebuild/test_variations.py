"""Variations are had or said not to be, and never taken for granted."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from builder.cli import cli
from builder.rebuild import VARIATIONS, CannotVaryError, Job, State, rebuild
from builder.rebuild.model import Way
from builder.store import Store


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path, tmp_path, "", (), Store(tmp_path / "store"))


def test_what_is_not_installed_is_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CannotVaryError, match="disorderfs is not installed"):
        VARIATIONS["order"].vary(Way())


def test_without_docker_nothing_is_built_and_the_reason_is_told(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    outcome = rebuild(job, "path+docker", tmp_path / "none", tmp_path / "work", keep=False)
    assert outcome.state is State.NOT_TRIED
    assert outcome.how.startswith("Docker cannot be reached")
    assert not (tmp_path / "work").exists()


def test_one_cpu_is_no_variation_of_one_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3})
    with pytest.raises(CannotVaryError, match="there is one CPU"):
        VARIATIONS["cpus"].vary(Way())


def test_several_at_once_add_up() -> None:
    way = Way()
    for name in ("zone", "umask", "path", "environment"):
        way, _ = VARIATIONS[name].vary(way)
    assert way.umask == 0o077
    assert way.env["TZ"] == "Asia/Kathmandu"
    assert way.env["TAR_OPTIONS"]
    assert " " in way.folder


@pytest.mark.parametrize("names", ["zone,moon", "zone+moon", ","])
def test_an_unknown_name_is_a_wrong_use(names: str) -> None:
    done = CliRunner().invoke(cli, ["rebuild-check", "recipes/smoke", "--variations", names])
    assert getattr(done.exception, "exit_code", None) == 2
    assert "take some of again, path, user" in str(done.exception)
