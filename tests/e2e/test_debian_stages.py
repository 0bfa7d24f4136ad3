"""Debian bases and packages on top: what is in them, and that who builds them and how makes no difference."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import User
from project import NETWORK, Project

from builder.lock import read, write
from builder.lock.debian import resolve_debs
from builder.lock.model import DebRequest
from builder.progress import Silent
from builder.recipe.model import Distribution

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900), pytest.mark.usefixtures("no_leftovers")]

RECIPE = """\
[Distribution]
Distribution = "debian"
Release = "bookworm"

[Output]
ImageId = "base"
ImageVersion = "1"

[Content]
SourceDateEpoch = 1640995200 # older than the packages: their files are dated back

[[Stage]]
Name = "base"
Kind = "debian"
Packages = ["python3-minimal", "systemd", "dbus"]

[[Stage]]
Name = "more"
Kind = "packages"
Packages = ["openssh-server", "iputils-ping"]
"""


def place(user: User, folder: Path) -> Project:
    """The recipe in `folder`, with a store of its own."""
    (folder / "recipes/base").mkdir(parents=True)
    (folder / "recipes/base/recipe.toml").write_text(RECIPE)
    subprocess.run(["chown", "-R", f"{user.uid}:{user.gid}", str(folder)], check=True)
    return Project(folder, replace(user, env={**user.env, **NETWORK, "BUILDER_STORE": str(folder / "store")}))


@pytest.fixture(scope="module")
def made(root_user: User, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The recipe, locked and built by root."""
    of = place(root_user, tmp_path_factory.mktemp("debian"))
    of.json("lock", "recipes/base")
    of.json("template", "recipes/base")
    return of


def shell(of: Project, command: str) -> str:
    """What a shell command in the finished template prints."""
    done = of.builder("shell", "recipes/base", "--", "sh", "-c", command)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


def digests(result: Any) -> list[str]:
    return [stage["digest"] for stage in result["stages"]]


def test_a_second_lock_changes_nothing(made: Project) -> None:
    lock_file = made.folder / "locks/base/lock.toml"
    before = lock_file.read_bytes()
    recipe = made.folder / "recipes/base/recipe.toml"
    recipe.write_text(RECIPE.replace('"iputils-ping"]', '"iputils-ping", "less"]'))
    try:
        made.json("lock", "recipes/base")
        more = {deb.name for deb in read(lock_file.parent).debs["more"]}
        assert "less" in more
        recipe.write_text(RECIPE)
        made.json("lock", "recipes/base")
        assert lock_file.read_bytes() == before
    finally:
        recipe.write_text(RECIPE)
        lock_file.write_bytes(before)


def test_exactly_the_locked_packages_are_there_and_configured(made: Project) -> None:
    lock = read(made.folder / "locks/base")
    locked = sorted(f"{deb.name} {deb.version}" for debs in lock.debs.values() for deb in debs)
    assert shell(made, "dpkg-query -W -f '${Package} ${Version}\\n'").splitlines() == locked
    assert shell(made, "dpkg --audit && apt-get check -qq") == ""


def test_the_template_knows_which_packages_were_asked_for(made: Project) -> None:
    assert shell(made, "apt-mark showmanual").split() == [
        "dbus",
        "iputils-ping",
        "openssh-server",
        "python3-minimal",
        "systemd",
    ]
    assert "Remv" not in shell(made, "apt-get -s autoremove")


def test_nothing_of_this_machine_or_of_one_run_is_left(made: Project) -> None:
    gone = "/etc/hostname /etc/resolv.conf /etc/ssh/ssh_host_* /usr/sbin/policy-rc.d /var/lib/dbus/machine-id"
    logs = "/var/log/dpkg.log /var/log/apt/* /var/cache/apt/*.bin /var/lib/apt/lists/*_* /etc/*-"
    own = "/etc/apt/apt.conf.d/builder /etc/dpkg/dpkg.cfg.d/builder /etc/apt/sources.list"
    assert shell(made, f"ls -d {gone} {logs} {own} 2>/dev/null || true") == ""
    assert shell(made, "stat -c %s /etc/machine-id") == "0"
    assert shell(made, "grep -c builder /etc/apt/sources.list.d/debian.sources || true") == "0"
    assert shell(made, "cat /etc/debian_version").startswith("12.")


def test_licences_stay_and_manuals_do_not(made: Project) -> None:
    lock = read(made.folder / "locks/base")
    names = [deb.name for debs in lock.debs.values() for deb in debs]
    assert shell(made, f"cd /usr/share/doc; for n in {' '.join(names)}; do [ -e $n/copyright ] || echo $n; done") == ""
    assert shell(made, "find /usr/share/man /usr/share/locale /usr/share/doc -type f ! -name copyright") == ""


def test_bytecode_is_valid_although_its_sources_are_dated_back(made: Project) -> None:
    script = (
        "import pathlib, importlib.util as u, sys\n"
        "found = list(pathlib.Path('/usr/lib/python3.11').glob('**/*.pyc'))\n"
        "print(len(found) > 50, {path.read_bytes()[4] for path in found})\n"
    )
    assert shell(made, f'python3 -c "{script}"') == "True {3}"


def test_ping_has_its_capability(made: Project) -> None:
    assert shell(made, "python3 -c \"import os; print(len(os.getxattr('/bin/ping', 'security.capability')))\"") == "20"


def test_an_ordinary_user_gets_the_same_layers(made: Project, ordinary_user: User) -> None:
    folder = ordinary_user.home / "debian"
    theirs = place(ordinary_user, folder)
    for name in ("locks", "store/blobs"):
        shutil.copytree(made.folder / name, folder / name)
    subprocess.run(["chown", "-R", f"{ordinary_user.uid}:{ordinary_user.gid}", str(folder)], check=True)
    (ordinary_user.home / ".dpkg.cfg").write_text("path-exclude=/usr/lib/*\n")
    result = theirs.json("build", "recipes/base", prefix=["sh", "-c", 'umask 077; exec "$0" "$@"'])
    assert digests(result) == digests(made.json("build", "recipes/base", "--explain"))


def test_another_version_than_the_locked_one_is_refused_and_leaves_no_layer(made: Project, tmp_path: Path) -> None:
    folder = made.folder / "locks/base"
    lock = read(folder)
    wrong = tuple(replace(deb, version="9") if deb.name == "iputils-ping" else deb for deb in lock.debs["more"])
    shutil.copytree(folder, tmp_path / "lock")
    try:
        write(replace(lock, debs={**lock.debs, "more": wrong}), folder)
        done = made.builder("build", "recipes/base")
    finally:
        shutil.copytree(tmp_path / "lock", folder, dirs_exist_ok=True)
    assert done.returncode == 1
    said = done.stderr.decode()
    assert "stage more: installed is not what is locked: iputils-ping: 3:" in said
    assert "instead of 9 amd64; run `builder lock --upgrade iputils-ping`" in said


def test_a_package_that_the_lock_lacks_stops_the_stage_that_needs_it(made: Project, tmp_path: Path) -> None:
    folder = made.folder / "locks/base"
    lock = read(folder)
    lacking = tuple(deb for deb in lock.debs["more"] if deb.name != "openssh-client")
    shutil.copytree(folder, tmp_path / "lock")
    try:
        write(replace(lock, debs={**lock.debs, "more": lacking}), folder)
        done = made.builder("build", "recipes/base")
    finally:
        shutil.copytree(tmp_path / "lock", folder, dirs_exist_ok=True)
    assert done.returncode == 1
    assert "stage more: " in done.stderr.decode()
    assert "openssh-client" in done.stderr.decode()


@pytest.mark.parametrize(("release", "python"), [("bookworm", "3.11"), ("trixie", "3.13")])
def test_both_debian_releases_resolve(release: str, python: str) -> None:
    mirrors = ("http://deb.debian.org/debian", "http://security.debian.org/debian-security")
    distribution = Distribution("debian", release, "amd64", *mirrors, ("main",))
    asked = DebRequest("base", ("systemd", "systemd-sysv", "python3"), ())
    found = resolve_debs(distribution, [asked], {}, upgrade=None, progress=Silent())["base"]
    names = {deb.name for deb in found}
    assert {"apt", "bash", "systemd", f"python{python}"} <= names
    assert "usrmerge" not in names
    assert all(deb.blob.urls[0].startswith(mirrors) for deb in found)
    assert all(deb.blob.urls[1].startswith("http://snapshot.debian.org/archive/debian") for deb in found)
    assert len({deb.blob.filename for deb in found}) == len(found)
