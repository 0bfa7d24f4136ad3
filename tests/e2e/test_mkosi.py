"""A real mkosi, of Debian's packages, reads what `builder export mkosi` writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
BUILDER = Path(sys.executable).with_name("builder")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def _out(argv: Sequence[str | Path], cwd: Path, **env: str) -> str:
    done = subprocess.run(argv, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{argv}: {done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Mkosi:
    """An unpacked mkosi; it needs nothing but Python to read configuration."""

    modules: Path
    version: int

    def images(self, folder: Path) -> list[dict[str, Any]]:
        """What `mkosi summary` makes of a tree: a table of settings for each image. It may warn of nothing."""
        done = subprocess.run(
            [sys.executable, "-m", "mkosi", "--directory", folder, "--json", "summary"],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(self.modules), "HOME": str(folder)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        images: list[dict[str, Any]] = json.loads(done.stdout)["Images"]
        return images


@pytest.fixture(scope="module", params=["trixie", "sid"])
def mkosi(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Mkosi:
    """The mkosi of a Debian suite, by a private apt that touches nothing of this machine's."""
    home = tmp_path_factory.mktemp("apt")
    for folder in ("lists/partial", "cache/archives/partial"):
        (home / folder).mkdir(parents=True)
    (home / "sources.list").write_text(f"deb [signed-by={KEYRING}] http://deb.debian.org/debian {request.param} main\n")
    (home / "apt.conf").write_text(
        f'Dir::Etc::sourcelist "{home}/sources.list"; Dir::Etc::sourceparts "-";\n'
        f'Dir::State::lists "{home}/lists"; Dir::State::status "/dev/null"; Dir::Cache "{home}/cache";\n'
        f'APT::Sandbox::User ""; Acquire::Languages "none";\n'
    )
    config = str(home / "apt.conf")
    _out(["apt-get", "update"], home, APT_CONFIG=config)
    _out(["apt-get", "download", "mkosi"], home, APT_CONFIG=config)
    (deb,) = home.glob("mkosi_*.deb")
    _out(["dpkg-deb", "-x", deb, home / "mkosi"], home)
    modules = home / "mkosi/usr/lib/python3/dist-packages"
    said = _out([sys.executable, "-m", "mkosi", "--version"], home, PYTHONPATH=str(modules))
    version = int(said.split()[1].split(".")[0])
    assert version >= 25
    return Mkosi(modules, version)


RECIPES = sorted(path.parent for path in ROOT.glob("recipes/*/recipe.toml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_mkosi_reads_every_variant_of_every_recipe(mkosi: Mkosi, recipe: Path, tmp_path: Path) -> None:
    shown = json.loads(_out([BUILDER, "recipe", "show", recipe, "--json"], tmp_path))
    for variant in shown["Variants"] or [""]:
        chosen = ["--variant", variant] if variant else []
        folder = tmp_path / f"tree-{variant}"
        version = ["--mkosi-version", str(mkosi.version)]
        _out([BUILDER, "export", "mkosi", recipe, folder, *chosen, *version], tmp_path)
        settings = json.loads(_out([BUILDER, "recipe", "show", recipe, "--json", *chosen], tmp_path))
        _assert_same(mkosi.images(folder), settings, folder)


def _assert_same(images: list[dict[str, Any]], settings: dict[str, Any], folder: Path) -> None:
    stages = [stage for stage in settings["Stage"] if not stage["Skip"]]
    assert [image["Image"] for image in images[:-1]] == [stage["Name"] for stage in stages]
    below: list[str] = []
    for image, stage in zip(images, [*stages, {}], strict=True):
        assert image["BaseTrees"] == below
        assert sorted(image["Packages"]) == sorted(stage.get("Packages", ()))
        assert image["Bootable"] == "disabled"
        for section, key in (
            ("Distribution", "Distribution"),
            ("Distribution", "Release"),
            ("Distribution", "Architecture"),
            ("Distribution", "Repositories"),
            ("Output", "CompressLevel"),
            ("Output", "ImageVersion"),
            ("Content", "SourceDateEpoch"),
        ):
            assert image[key] == settings[section][key], key
        trees = [tree for tree in stage.get("ExtraTrees", ()) if not tree.startswith("url:")]
        assert [tree["Target"] for tree in image["ExtraTrees"]] == [tree.partition(":")[2] or None for tree in trees]
        assert all(Path(tree["Source"]).is_relative_to(folder) for tree in image["ExtraTrees"])
        for script in image["PostInstallationScripts"]:
            assert os.access(script, os.X_OK)
        assert len(image["PostInstallationScripts"]) == len(stage.get("PostInstallationScripts", ()))
        below = [str(folder / "mkosi.output" / image["Output"])]
    main = images[-1]
    assert (main["Format"], main["CompressOutput"], images[0]["Format"]) == ("tar", "zstd", "directory")
    assert main["ImageId"].startswith(settings["Output"]["ImageId"])
