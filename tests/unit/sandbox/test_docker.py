"""What a container is given of the machine, and which Docker is taken."""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

import pytest

from builder.errors import BuilderError
from builder.sandbox import docker


def mounts(writable: Path, readable: Path) -> dict[str, bool]:
    job = docker.Job(["build"], [writable], [readable], {})
    return {mount["Target"]: mount["ReadOnly"] for mount in docker._mounts(job)}


def test_only_the_store_and_the_output_can_be_written(tmp_path: Path) -> None:
    store, project = tmp_path / "store", tmp_path / "project"
    store.mkdir()
    project.mkdir()
    found = mounts(store, project)
    assert [place for place, read_only in found.items() if not read_only] == [str(store)]
    assert found[str(project)] is True


def test_the_python_that_runs_and_the_tools_are_there_and_no_secret_is(tmp_path: Path) -> None:
    found = mounts(tmp_path, tmp_path)
    assert {"/usr", "/var/lib/dpkg", "/etc/passwd"} <= found.keys()
    assert any(Path(sys.prefix).is_relative_to(place) for place in found)
    assert not {"/", "/etc", "/etc/shadow", "/root", "/home"} & found.keys()


def test_the_image_is_the_same_every_time_and_holds_no_file() -> None:
    data = docker._skeleton()
    assert data == docker._skeleton()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert not [member.name for member in tar if member.isfile()]


def test_a_docker_of_another_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://192.0.2.1:2375")
    monkeypatch.setattr("docker.api.client.APIClient._retrieve_server_version", lambda _: "1.41")
    with pytest.raises(BuilderError, match="on another machine"):
        docker.run(docker.Job([], [], [], {}), out=print, err=print)


def test_without_docker_the_way_out_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(BuilderError, match="DOCKER_HOST"):
        docker.run(docker.Job([], [], [], {}), out=print, err=print)
    assert docker.missing()
