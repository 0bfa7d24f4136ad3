"""The tree that is written for mkosi. That mkosi reads it is shown in tests/e2e/test_mkosi.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from builder.errors import BuilderError, UsageError
from builder.recipe import export_mkosi, load
from builder.recipe.keys import KindInfo
from builder.recipe.model import Recipe

Write = Callable[[str], Path]
Kinds = Mapping[str, KindInfo]

MORE = """
[[Url]]
Name = "tool"
Url = "https://example.org/tool.tar"
[[Stage]]
Name = "later"
Kind = "packages"
Packages = ["vim"]
Skip = "too large"
[[Stage]]
Name = "system"
Kind = "files"
ExtraTrees = ["files:/", "url:tool:/opt"]
PostInstallationScripts = ["setup"]
RemoveFiles = ["/usr/share/doc/100%", "/a,b", "/c#d"]
Masks = { "a.service" = "not in a container" }
"""


@pytest.fixture
def loaded(recipe: Write, kinds: Kinds, minimal: str) -> Recipe:
    return load(recipe(minimal + MORE), kinds)


def test_each_stage_is_an_image_over_the_one_below(loaded: Recipe, kinds: Kinds, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_mkosi(loaded, out, kinds)
    assert sorted(path.name for path in (out / "mkosi.images").iterdir()) == ["base", "system"]
    top, base, system = (
        (out / path / "mkosi.conf").read_text() for path in (".", "mkosi.images/base", "mkosi.images/system")
    )
    assert "Dependencies=system\n" in top
    assert "BaseTrees=%O/system\n" in top
    assert '# Stage "later" is left out: too large\n' in top
    assert "BaseTrees" not in base
    assert "Packages=systemd\nWithDocs=no\n" in base
    assert "BaseTrees=%O/base\n" in system


def test_files_come_along_and_scripts_run_inside(loaded: Recipe, kinds: Kinds, tmp_path: Path) -> None:
    export_mkosi(loaded, tmp_path / "out", kinds)
    image = tmp_path / "out/mkosi.images/system"
    conf = (image / "mkosi.conf").read_text()
    assert "ExtraTrees=recipe/small/files:/\n" in conf
    assert (image / "recipe/small/files/etc/motd").read_text() == "hello\n"
    assert "PostInstallationScripts=recipe/small/setup.chroot\n" in conf
    assert (image / "recipe/small/setup.chroot").stat().st_mode & 0o111 == 0o111


def test_what_mkosi_cannot_express_is_a_comment(loaded: Recipe, kinds: Kinds, tmp_path: Path) -> None:
    export_mkosi(loaded, tmp_path / "out", kinds)
    conf = (tmp_path / "out/mkosi.images/system/mkosi.conf").read_text()
    assert '# mkosi fetches no files: ExtraTrees = "url:tool:/opt"\n' in conf
    assert '# mkosi cannot write this: RemoveFiles = "/a,b"\n' in conf
    assert '# Masks = {"a.service": "not in a container"}\n' in conf
    assert "RemoveFiles=/usr/share/doc/100%%\n" in conf


def test_keys_follow_the_version(loaded: Recipe, kinds: Kinds, tmp_path: Path) -> None:
    for version in (25, 26):
        export_mkosi(loaded, tmp_path / str(version), kinds, version=version, snapshot="20251016T000000Z")
    old, new = ((tmp_path / version / "mkosi.conf").read_text() for version in ("25", "26"))
    assert "\nSnapshot=20251016T000000Z\n" in new
    assert "\n# mkosi 25 has no Snapshot=20251016T000000Z\n" in old
    with pytest.raises(UsageError, match="mkosi 24 is too old"):
        export_mkosi(loaded, tmp_path / "24", kinds, version=24)


def test_a_mirror_of_debian_is_written_as_the_version_wants_it(
    recipe: Write, kinds: Kinds, minimal: str, tmp_path: Path
) -> None:
    mirror = 'Mirror = "http://mirror.example.org/debian/"\nSecurityMirror = "http://mirror.example.org/security"\n'
    loaded = load(recipe(minimal.replace("[Output]", mirror + "[Output]")), kinds)
    for version in (25, 26):
        export_mkosi(loaded, tmp_path / str(version), kinds, version=version)
    old, new = ((tmp_path / version / "mkosi.conf").read_text() for version in ("25", "26"))
    assert "\nMirror=http://mirror.example.org/debian\n" in old
    assert "\nMirror=http://mirror.example.org\n" in new
    assert "# mkosi takes security updates from its own place" in old


def test_a_folder_in_use_is_left_alone(loaded: Recipe, kinds: Kinds, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    export_mkosi(loaded, out, kinds)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match="is not empty; name a new or an empty folder"):
        export_mkosi(loaded, out, kinds)
    with pytest.raises(UsageError, match="no such folder"):
        export_mkosi(loaded, tmp_path / "no/out", kinds)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_failure_leaves_nothing_behind(loaded: Recipe, kinds: Kinds, tmp_path: Path) -> None:
    (loaded.directory / "setup").unlink()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BuilderError, match="setup: No such file"):
        export_mkosi(loaded, tmp_path / "out", kinds)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_stage_may_not_take_the_name_of_mkosis_own_image(
    recipe: Write, kinds: Kinds, minimal: str, tmp_path: Path
) -> None:
    loaded = load(recipe(minimal.replace('"base"', '"main"')), kinds)
    with pytest.raises(UsageError, match='stage "main": mkosi keeps this name'):
        export_mkosi(loaded, tmp_path / "out", kinds)
