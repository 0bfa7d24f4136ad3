"""From recipe to template, as users run it: the same bytes for everybody, little work when little changed."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from uuid import uuid4

import pytest
from conftest import User
from project import STORE, Project, project

MANIFEST = "smoke_1_amd64.manifest.json"

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900), pytest.mark.usefixtures("no_leftovers")]


@pytest.fixture(scope="module")
def smoke(root_user: User, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """smoke, built by root with the machine's own store."""
    made = project(root_user, tmp_path_factory.mktemp("smoke"), "smoke", "tiny", store=STORE)
    made.json("template", "recipes/smoke")
    return made


def template(of: Project) -> Path:
    return next(of.artifacts.glob("smoke_*.tar.zst"))


def differing_files(one: Project, other: Project) -> list[str]:
    """What two manifests say differently of a file, a line each."""
    told = [
        {file["path"]: file for file in json.loads(template(of).with_name(MANIFEST).read_bytes())["files"]}
        for of in (one, other)
    ]
    paths = sorted(told[0].keys() | told[1].keys())
    return [
        f"{path}: {told[0].get(path)} {told[1].get(path)}" for path in paths if told[0].get(path) != told[1].get(path)
    ]


def test_a_second_run_changes_nothing(smoke: Project) -> None:
    before = template(smoke).stat().st_mtime_ns
    again = smoke.json("template", "recipes/smoke")
    assert again["fresh"] is False
    assert again["stages"] == []
    assert template(smoke).stat().st_mtime_ns == before


def test_the_hash_told_is_the_files_own_and_stands_in_the_checksums(smoke: Project) -> None:
    told = smoke.json("template", "recipes/smoke")["sha256"]
    assert hashlib.sha256(template(smoke).read_bytes()).hexdigest() == told
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=smoke.artifacts, check=True)


def test_zstd_and_tar_accept_it(smoke: Project) -> None:
    subprocess.run(["zstd", "-q", "-t", template(smoke)], check=True)
    listed = subprocess.run(["tar", "--zstd", "-tf", template(smoke)], check=True, capture_output=True).stdout
    names = listed.decode().splitlines()
    assert names[0] == "./"
    assert "./opt/smoke/bin/python" in names
    assert all(name.startswith("./") for name in names)


@pytest.mark.parametrize("epoch", ["2001-02-03 04:05:06", "2033-02-03 04:05:06"])
def test_an_ordinary_user_elsewhere_gets_the_same_bytes(
    smoke: Project, ordinary_user: User, tmp_path_factory: pytest.TempPathFactory, epoch: str
) -> None:
    """Another user, path, store, clock, time zone, locale and umask."""
    place = ordinary_user.home / "a place with blanks" / epoch[:4]
    place.mkdir(parents=True)
    theirs = project(ordinary_user, place, "smoke").with_env(TZ="Asia/Kathmandu", LC_ALL="tr_TR.UTF-8", LANG="C")
    prefix = ["sh", "-c", 'umask 077; exec faketime -f "@$0" "$@"', epoch]
    made = theirs.json("template", "recipes/smoke", prefix=prefix)
    assert differing_files(smoke, theirs) == []
    assert made["sha256"] == smoke.json("template", "recipes/smoke")["sha256"]


def test_a_changed_file_rebuilds_its_stage_alone_and_says_so(root_user: User, tmp_path: Path) -> None:
    here = project(root_user, tmp_path, "smoke", store=STORE)
    here.json("build", "recipes/smoke")
    about = here.folder / "recipes/smoke/files/etc/smoke/about"
    about.write_text(f"{uuid4()}\n")
    rows = {row["stage"]: row["reason"] for row in here.json("build", "recipes/smoke", "--dry-run")}
    assert rows == {"base": "cached", "wheels": "cached", "system": "changed: file files/etc/smoke/about"}
    made = here.json("build", "recipes/smoke")
    assert [stage["reason"] == "cached" for stage in made["stages"]] == [True, True, False]


def test_a_stage_rebuilt_to_the_same_content_costs_those_above_it_nothing(root_user: User, tmp_path: Path) -> None:
    here = project(root_user, tmp_path, "tiny", store=STORE)
    recipe = here.folder / "recipes/tiny/recipe.toml"
    files = '[[Stage]]\nName = "{}"\nKind = "files"\nExtraTrees = ["{}"]\n'
    text = recipe.read_text()
    (here.folder / "recipes/tiny/more").mkdir()
    (here.folder / "recipes/tiny/more/above").write_text("above")
    (here.folder / "recipes/tiny/files/etc/new").write_text(str(uuid4()))
    recipe.write_text(text + "\n" + files.format("above", "more:/opt/more"))
    here.json("build", "recipes/tiny")
    recipe.write_text(recipe.read_text().replace('["files:/"]', '["files:/", "files/etc/tiny:/etc/tiny"]'))
    reasons = {stage["name"]: stage["reason"] for stage in here.json("build", "recipes/tiny")["stages"]}
    assert reasons["files"].startswith("changed: setting ExtraTrees")
    assert reasons["above"] == "cached"


def test_a_shell_sees_the_layers_and_leaves_no_trace(smoke: Project) -> None:
    script = "import httpx; open('/opt/trace', 'w').close(); print(httpx.__version__)"
    done = smoke.builder("shell", "recipes/smoke:wheels", "--", "/opt/smoke/bin/python", "-c", script)
    assert done.stdout.decode().split() == ["0.28.1"], done.stderr.decode()
    again = smoke.builder("shell", "recipes/smoke", "--", "test", "-e", "/opt/trace")
    assert again.returncode == 1


def test_history_tells_the_stages(smoke: Project) -> None:
    done = smoke.builder("history", str(template(smoke)))
    assert [line.split()[:2] for line in done.stdout.decode().splitlines()[1:]] == [
        ["base", "debian"],
        ["wheels", "wheels"],
        ["system", "files"],
    ]


def test_the_bill_of_materials_names_debs_and_wheels_with_hashes(smoke: Project) -> None:
    bill = json.loads(next(smoke.artifacts.glob("smoke_*.cdx.json")).read_bytes())
    found = {component["name"]: component for component in bill["components"]}
    assert found["httpx"]["purl"] == "pkg:pypi/httpx@0.28.1"
    assert found["systemd"]["purl"].startswith("pkg:deb/debian/systemd@")
    assert all(component["hashes"][0]["alg"] == "SHA-256" for component in bill["components"])
