"""The same recipe in other surroundings: the same bytes, and where not, that is found and told."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import User
from dockerd import private_dockerd
from project import STORE, Project, project

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900), pytest.mark.usefixtures("no_leftovers")]

LEAK = """\
import socket
from dataclasses import replace

import builder.stage

files = builder.stage.KINDS["files"]


def leaky(context):
    files.build(context)
    (context.upper / "etc/simulated-leak").write_text(socket.gethostname() + "\\n")


builder.stage.KINDS = {**builder.stage.KINDS, "files": replace(files, build=leaky)}
"""
"""A builder whose files stage lets the machine's host name into the template."""


@pytest.fixture(scope="module")
def tiny_project(root_user: User, tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = project(root_user, tmp_path_factory.mktemp("rebuild"), "smoke", "tiny", store=STORE)
    made.json("template", "recipes/tiny")
    return made


@pytest.fixture(scope="module")
def docker_host() -> Iterator[str]:
    if shutil.which("dockerd") is None:
        pytest.skip("needs dockerd")
    with private_dockerd() as host:
        yield host


def test_five_variations_of_smoke_in_two_rebuilds(tiny_project: Project, ordinary_user: User) -> None:
    tiny_project.json("template", "recipes/smoke")
    told = tiny_project.json("rebuild-check", "recipes/smoke", "--variations", "order+user+path+future,order+umask")
    states = {row["variation"]: (row["state"], row["sha256"]) for row in told["variations"]}
    assert states == dict.fromkeys(("order+user+path+future", "order+umask"), ("same", told["sha256"]))


def test_what_leaks_is_found_and_shown(tiny_project: Project, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(LEAK)
    leaky = tiny_project.with_env(PYTHONPATH=str(tmp_path), BUILDER_STORE=str(tmp_path / "store"))
    shutil.copytree(STORE / "blobs", tmp_path / "store/blobs", copy_function=os.link)
    done = leaky.builder("rebuild-check", "recipes/tiny", "--variations", "hostname", "--json")
    assert done.returncode == 1, done.stderr.decode()
    (row,) = json.loads(done.stdout)["variations"]
    assert (row["state"], row["stage"], row["files"]) == ("different", "files", ["etc/simulated-leak"])
    assert "+rebuild.example.org" in row["shown"]


def test_the_clock_of_libfaketime_holds_in_stages(tiny_project: Project) -> None:
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    ahead = tiny_project.with_env(LD_PRELOAD=str(library), FAKETIME="+20y")
    done = ahead.builder("shell", "recipes/tiny", "--", "date", "+%s")
    assert 19 < (int(done.stdout) - time.time()) / (365 * 86400) < 21, done.stderr.decode()


def test_a_named_variation_that_cannot_be_had_is_a_failure(tiny_project: Project) -> None:
    nowhere = tiny_project.with_env(DOCKER_HOST="unix:///nonexistent.sock")
    done = nowhere.builder("rebuild-check", "recipes/tiny", "--variations", "docker")
    assert done.returncode == 1
    assert "not tried" in done.stdout.decode()


def test_the_docker_engine_gives_the_same_bytes(tiny_project: Project, docker_host: str) -> None:
    told = tiny_project.with_env(DOCKER_HOST=docker_host).json(
        "rebuild-check", "recipes/tiny", "--variations", "docker"
    )
    assert [(row["state"], row["sha256"]) for row in told["variations"]] == [("same", told["sha256"])]


def test_an_interrupted_build_in_docker_leaves_no_container(root_user: User, tmp_path: Path, docker_host: str) -> None:
    import docker

    of = project(root_user, tmp_path, "tiny").with_env(DOCKER_HOST=docker_host)
    client = docker.DockerClient(base_url=docker_host)
    process = of.user.popen(of.argv("build", "recipes/tiny", "--engine", "docker"))
    deadline = time.monotonic() + 60
    while not client.containers.list():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 130
    assert client.containers.list(all=True) == []
    client.close()


def test_an_ordinary_user_may_ask_too(ordinary_user: User) -> None:
    place = ordinary_user.home / "asking"
    place.mkdir()
    theirs = project(ordinary_user, place, "tiny")
    done = theirs.builder("rebuild-check", "recipes/tiny", "--variations", "hostname,user", "--json")
    states = {row["variation"]: row["state"] for row in json.loads(done.stdout)["variations"]}
    assert states == {"hostname": "same", "user": "not tried"}
    assert done.returncode == 1
    assert not [path for path in (theirs.store / "tmp").glob("session-*") if path.is_dir()]
