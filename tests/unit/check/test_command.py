"""`builder check` on a small packed template, as a user calls it, and where its files come from."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from madetemplate import CARD, Make, ids

from builder import check as checking
from builder.check import Severity
from builder.cli import cli
from builder.errors import BuilderError, UsageError
from builder.pack import Info, Layer, StageInfo, pack
from builder.recipe import load
from builder.recipe.model import Venv
from builder.stage import KINDS
from builder.store import Store
from builder.tree import scan

RECIPE = """\
[Distribution]
Distribution = "debian"
Release = "bookworm"
[Output]
ImageId = "demo"
ImageVersion = "1"
[Content]
SourceDateEpoch = 1760572800
[Target]
Name = "GeForce RTX 5060 Ti"
ComputeCapability = "12.0"
Devices = 2
MemoryMiB = 16311
[[Stage]]
Name = "base"
Kind = "debian"
"""
PROFILE = """\
[Profile]
Description = "made"
[Model]
Repository = "some/model"
Path = "/models/model"
[Options]
served-model-name = "made"
gpu-memory-utilization = {share}
{options}
[Environment]
VLLM_USE_V1 = "1"
CUDA_CACHE_PATH = "/var/cache/vllm/nv"
"""

VENV = Venv("served", "/opt/vllm", "/usr/bin/python3.11", ("vllm[audio]==0.10.2",), (), (), "", "")


@pytest.fixture
def project(make: Make, tmp_path: Path) -> Path:
    """A project with a recipe of two profiles and its packed template; the made tree is in `root`."""
    make()
    recipe = tmp_path / "recipes" / "demo"
    (recipe / "profiles").mkdir(parents=True)
    (recipe / "recipe.toml").write_text(RECIPE)
    (recipe / "profiles" / "good.toml").write_text(PROFILE.format(share="0.9", options=""))
    (recipe / "profiles" / "slow.toml").write_text(PROFILE.format(share="0.9", options="max-num-seqs = 1"))
    pack_root(tmp_path)
    return tmp_path


def pack_root(project: Path, venv: Venv = VENV) -> Path:
    root = project / "root"
    info = Info(
        recipe="demo",
        variant="",
        recipe_digest="d" * 64,
        distribution="debian",
        release="bookworm",
        stages=(StageInfo("base", "debian", "1" * 64, "a" * 64, 5000),),
        debs=(),
        wheels=(),
        urls=(),
        target=CARD,
        venvs=(venv,),
    )
    layers = [Layer("base", scan(root), root)]
    names = {"name": "demo", "version": "1", "architecture": "amd64"}
    return pack(layers, project / "artifacts", **names, level=1, epoch=1_760_572_800, info=info, jobs=1).path


def template(project: Path) -> Path:
    return project / "artifacts" / "demo_1_amd64.tar.zst"


def quick(project: Path, *arguments: str) -> Result:
    return CliRunner().invoke(
        cli, ["check", str(template(project)), "--quick", *arguments], catch_exceptions=False, standalone_mode=False
    )


def told(project: Path, *arguments: str) -> Any:
    return json.loads(quick(project, "--json", *arguments).stdout)


def test_a_quick_check_of_a_packed_template(project: Path) -> None:
    found = told(project)
    assert found["profiles"] == ["good", "slow"]
    assert found["counts"]["error"] == 0
    rules = {(finding["rule"], finding["severity"]) for finding in found["findings"]}
    unseen = {("engine", "not checked"), ("gpu-code", "not checked"), ("driver", "not checked")}
    assert {("max-num-seqs-one", "warning"), *unseen} <= rules


def test_the_profiles_that_were_asked_for(project: Path) -> None:
    assert told(project, "--profile", "good")["profiles"] == ["good"]
    with pytest.raises(UsageError, match="no profile 'god'"):
        quick(project, "--profile", "god")


def test_for_people_with_the_holes_in_one_table(project: Path) -> None:
    done = quick(project)
    assert done.return_value == 0
    assert "warning  profile slow: serves one request at a time" in done.stdout
    assert "    instead: leave it out" in done.stdout
    assert "Published holes of these versions, as known on 20" in done.stdout
    assert done.stdout.count("CVE-2026-22807") == 1
    assert done.stdout.splitlines()[-1].startswith("demo_1_amd64.tar.zst, 2 profiles: 1 warning, ")


def test_an_error_ends_with_status_1(project: Path) -> None:
    done = quick(project, "--profile", "good", "--profile", "slow", "--together")
    assert done.return_value == 0
    (project / "recipes" / "demo" / "profiles" / "more.toml").write_text(PROFILE.format(share="0.9", options=""))
    done = quick(project, "--together")
    assert done.return_value == 1
    assert "error  3 profiles on 2 cards: do not fit" in done.stdout


def test_a_template_whose_recipe_is_not_there(project: Path) -> None:
    shutil.move(project / "recipes", project / "elsewhere")
    found = told(project)
    assert found["profiles"] == []
    with pytest.raises(UsageError, match="recipe is not known"):
        quick(project, "--profile", "good")
    assert told(project, "--recipe", str(project / "elsewhere" / "demo"))["profiles"] == ["good", "slow"]


def test_card_and_environment_are_the_manifests(project: Path) -> None:
    shutil.rmtree(project / "recipes")
    pack_root(project, replace(VENV, path="/opt/elsewhere"))
    subject = checking.of_list(template(project), None)
    assert (subject.target, subject.venv) == (CARD, "/opt/elsewhere")


def test_an_older_manifest_tells_neither_and_the_recipe_does(project: Path) -> None:
    manifest = project / "artifacts" / "demo_1_amd64.manifest.json"
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join(line for line in lines if not line.startswith(('"target"', '"venvs"'))))
    recipe = load(project / "recipes" / "demo", KINDS, None)
    assert checking.of_list(template(project), recipe).target == CARD
    alone = checking.of_list(template(project), None)
    assert (alone.target, alone.venv) == (None, "/opt/vllm")


@pytest.mark.parametrize("line", ['"target": {"name": 1}', '"venvs": [1]', '"venvs": [{"path": "/x"}]'])
def test_a_damaged_card_or_environment_in_a_manifest(project: Path, line: str) -> None:
    manifest = project / "artifacts" / "demo_1_amd64.manifest.json"
    key = line.partition(":")[0]
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join(f"{line},\n" if text.startswith(key) else text for text in lines))
    with pytest.raises(BuilderError, match="is a damaged manifest"):
        checking.of_list(template(project), None)


def test_what_a_template_says_does_no_harm_to_a_terminal(project: Path) -> None:
    evil = project / "root" / "opt" / "\x1b[2Jevil"
    evil.write_text("")
    evil.chmod(0o777)
    pack_root(project)
    done = quick(project)
    assert done.return_value == 1
    assert "\x1b" not in done.stdout
    assert "?[2Jevil" in done.stdout


def test_a_recipe_cannot_be_checked_quickly(project: Path) -> None:
    with pytest.raises(UsageError, match="--quick reads the manifest"):
        CliRunner().invoke(
            cli, ["check", str(project / "recipes" / "demo"), "--quick"], catch_exceptions=False, standalone_mode=False
        )


def test_a_template_is_of_one_variant(project: Path) -> None:
    with pytest.raises(UsageError, match="--variant goes with a recipe"):
        quick(project, "--variant", "nvidia")


def test_a_packed_template_is_unpacked_where_the_store_lacks_its_layers(project: Path) -> None:
    store = Store(project / "store")
    recipe = load(project / "recipes" / "demo", KINDS, None)
    with checking.of_template(template(project), recipe, store) as subject:
        assert subject.target == recipe.target
        assert subject.tree.read("/etc/debian_version") == "12.12\n"
        found = checking.run(subject, store=store)
        (root,) = subject.tree.layers
    assert not root.exists()
    assert not ids(found, Severity.ERROR)
    assert ids(found, Severity.NOT_CHECKED) == {"driver-host", "packed-file", "hygiene-elsewhere"}


def test_a_template_that_was_cut_off_on_its_way(project: Path) -> None:
    data = template(project).read_bytes()
    template(project).write_bytes(data[:-1])
    done = quick(project)
    assert done.return_value == 1
    assert "error  demo_1_amd64.tar.zst: the packed file is damaged or cut off" in done.stdout


def test_a_damaged_template_is_an_error_that_names_it(project: Path) -> None:
    data = template(project).read_bytes()
    template(project).write_bytes(data[: len(data) // 2])
    with (
        pytest.raises(BuilderError, match="builder verify"),
        checking.of_template(template(project), None, Store(project / "store")),
    ):
        pass
