"""What the kinds debian and packages ask of the lock, and what they do around mmdebstrap and apt."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from builder.errors import BuilderError, UsageError
from builder.lock.model import Blob, Deb, DebRequest, Lock
from builder.recipe.model import Distribution, Recipe, Stage
from builder.stage import KINDS, aptrepo, debfile, debs
from tests.unit.build import plain

needs_dpkg = pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="needs dpkg")


def stage(name: str, kind: str, *packages: str, skip: str | None = None, docs: bool = False) -> Stage:
    return Stage(name, kind, {"Packages": list(packages), "WithDocs": docs}, skip, "", 0, 60)


def recipe(*stages: Stage) -> Recipe:
    distribution = Distribution("debian", "bookworm", "amd64", "http://mirror/debian", "http://security", ("main",))
    return replace(plain.recipe(*stages), distribution=distribution)


def deb(name: str, version: str = "1") -> Deb:
    return Deb(name, version, "amd64", "bookworm", Blob(name.ljust(64, "0"), 1, f"{name}_{version}_amd64.deb", ()))


def requests(made: Recipe, number: int) -> list[Any]:
    chosen = made.stages[number]
    return list(KINDS[chosen.kind].requests(made, chosen))


def inputs(made: Recipe, number: int, **locked: tuple[Deb, ...]) -> Any:
    chosen = made.stages[number]
    return KINDS[chosen.kind].inputs(made, chosen, Lock("r", "", debs=locked))


class TestRequests:
    def test_the_base_is_resolved_from_nothing_whatever_the_order(self) -> None:
        one, other = recipe(stage("base", "debian", "b", "a")), recipe(stage("base", "debian", "a", "b", "a"))
        assert requests(one, 0) == requests(other, 0) == [DebRequest("base", ("a", "b"), ())]

    def test_packages_are_resolved_on_top_of_all_stages_of_packages_before(self) -> None:
        made = recipe(
            stage("base", "debian", "a"),
            stage("left-out", "packages", "x", skip="not now"),
            stage("tools", "packages", "b"),
            stage("files", "files"),
            stage("more", "packages", "c"),
            stage("later", "packages", "d"),
        )
        assert requests(made, 4) == [DebRequest("more", ("c",), ("base", "tools"))]

    def test_packages_on_nothing_are_refused(self) -> None:
        with pytest.raises(UsageError, match=r"stage more: nothing below it .* put a stage of kind debian first"):
            requests(recipe(stage("more", "packages", "a")), 0)


class TestInputs:
    def test_the_key_holds_what_is_asked_for_and_what_is_locked_and_no_tool_of_the_host(self) -> None:
        found = inputs(recipe(stage("base", "debian", "a")), 0, base=(deb("a"), deb("liba", "2")))
        assert found.params["Packages"] == ["a"]
        assert found.params["Locked"] == {"a": "1 amd64", "liba": "2 amd64"}
        assert set(found.params) == {"Packages", "Locked", "WithDocs", "Distribution", "Release", "Sources"}
        assert "URIs: http://mirror/debian\n" in found.params["Sources"]
        assert [blob.filename for blob in found.blobs] == ["a_1_amd64.deb", "liba_2_amd64.deb"]

    def test_the_template_installs_on_top_so_that_no_tool_of_the_host_is_in_the_key(self) -> None:
        made = recipe(stage("base", "debian", "a"), stage("more", "packages", "b", docs=True))
        assert dict(inputs(made, 1, more=(deb("b"),)).params) == {
            "Packages": ["b"],
            "Locked": {"b": "1 amd64"},
            "WithDocs": True,
        }

    @pytest.mark.parametrize("number", [0, 1])
    def test_a_stage_without_a_lock_names_the_command(self, number: int) -> None:
        made = recipe(stage("base", "debian", "a"), stage("more", "packages", "b"))
        with pytest.raises(BuilderError, match="has no packages for it; run `builder lock`"):
            inputs(made, number)

    def test_a_base_on_top_of_something_is_refused(self) -> None:
        made = recipe(stage("base", "debian", "a"), stage("again", "debian", "b"))
        with pytest.raises(UsageError, match="stage again: kind debian must come first"):
            inputs(made, 1, again=(deb("b"),))

    def test_only_what_was_not_asked_for_is_marked_as_automatic(self) -> None:
        params = {"Packages": ["a", "b=1"], "Locked": {"a": "", "b": "", "liba": "", "libb": ""}}
        assert debs.automatic(params) == ["liba", "libb"]


class TestKeys:
    @pytest.mark.parametrize("name", ["g++", "libc6-dev", "python3.11", "curl=7.88.1-10+deb12u14", "passwd=1:4.13~rc1"])
    def test_names_of_packages(self, name: str) -> None:
        assert self.wrong(name) is None

    @pytest.mark.parametrize(
        "name", ["", "-y", "curl/sid", "Curl", "a b", "../a.deb", "?essential", "curl-$(id)", "curl="]
    )
    def test_what_apt_would_take_for_something_else(self, name: str) -> None:
        assert self.wrong(name) == f'has "{name}", which is no NAME or NAME=VERSION of a package'

    def wrong(self, name: str) -> str | None:
        (key,) = (key for key in KINDS["debian"].keys if key.name == "Packages")
        assert key.check
        return key.check(["curl", name])


def make_deb(folder: Path, name: str, compression: str = "xz", fields: str = "") -> Blob:
    """Build a small .deb in `folder`; what the lock would say of it."""
    tree = folder / name
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "file").write_text(name * 1000)
    (tree / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: x\nDepends: other (>= 1)\n{fields}"
        "Description: a\n b\n"
    )
    made = folder / f"{name}_1_all.deb"
    argv = ["dpkg-deb", "--root-owner-group", f"-Z{compression}", "--uniform-compression", "--build", tree, made]
    subprocess.run(argv, check=True, capture_output=True)
    data = made.read_bytes()
    return Blob(hashlib.sha256(data).hexdigest(), len(data), made.name, ())


def dpkg_deb(option: str, deb: Path) -> bytes:
    return subprocess.run(["dpkg-deb", option, deb], check=True, capture_output=True).stdout


@needs_dpkg
class TestPlainPackage:
    @pytest.mark.parametrize("compression", ["xz", "gzip", "zstd", "none"])
    def test_dpkg_finds_in_it_what_the_packed_one_has(self, tmp_path: Path, compression: str) -> None:
        packed, plain = tmp_path / make_deb(tmp_path, "a", compression).filename, tmp_path / "plain.deb"
        control = debfile.unpack(packed, plain)
        for option in ("--ctrl-tarfile", "--fsys-tarfile"):
            assert dpkg_deb(option, plain) == dpkg_deb(option, packed)
        assert control == (tmp_path / "a/DEBIAN/control").read_text()
        assert b"a" * 1000 in plain.read_bytes()

    @pytest.mark.parametrize(
        "damage", ["empty", "text", "cut in the header", "cut in the data", "flipped", "no control"]
    )
    @pytest.mark.parametrize("compression", ["xz", "gzip", "zstd"])
    def test_what_is_no_package_is_named(self, tmp_path: Path, damage: str, compression: str) -> None:
        packed = tmp_path / make_deb(tmp_path, "a", compression).filename
        data = packed.read_bytes()
        packed.write_bytes(
            {
                "empty": b"",
                "text": b"no",
                "cut in the header": data[:100],
                "cut in the data": data[:-200],
                "flipped": data[:-200] + bytes(200),
                "no control": data[:72],
            }[damage]
        )
        with pytest.raises(BuilderError, match=r"x\.deb: is no Debian package: ."):
            debfile.unpack(packed, tmp_path / "x.deb")

    @pytest.mark.skipif(shutil.which("ar") is None, reason="needs ar")
    def test_a_control_file_that_is_none_is_refused(self, tmp_path: Path) -> None:
        packed = tmp_path / make_deb(tmp_path, "a").filename
        good, plain = (tmp_path / "a/DEBIAN/control").read_text(), tmp_path / "x.deb"
        for what, control in {
            "no control file": [member("./control", linkname="./control")],
            "two paragraphs": [member("./control", f"{good}\nPackage: b\n".encode())],
            "no control file ": [member("control", bytes((1 << 20) + 1))],
        }.items():
            with_control(packed, tmp_path / "bad.deb", control)
            with pytest.raises(BuilderError, match=what.strip()):
                debfile.unpack(tmp_path / "bad.deb", plain)
        with_control(packed, tmp_path / "plain-name.deb", [member("control", good.encode())])
        assert debfile.unpack(tmp_path / "plain-name.deb", plain) == good


Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, data: bytes = b"", linkname: str = "") -> Member:
    info = tarfile.TarInfo(name)
    info.size, info.linkname = len(data), linkname
    info.type = tarfile.SYMTYPE if linkname else tarfile.REGTYPE
    return info, data


def with_control(packed: Path, bad: Path, members: list[Member]) -> None:
    """The package `packed` with another archive of control files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    control = bad.with_name("control.tar")
    control.write_bytes(buffer.getvalue())
    folder = bad.with_suffix(".parts")
    folder.mkdir()
    subprocess.run(["ar", "x", packed, "--output", folder], check=True)
    others = [path for path in sorted(folder.iterdir()) if not path.name.startswith("control")]
    order = [path for path in others if path.name == "debian-binary"] + [control]
    order += [path for path in others if path.name != "debian-binary"]
    bad.unlink(missing_ok=True)
    subprocess.run(["ar", "rcS", bad, *order], check=True)
    shutil.rmtree(folder)


@needs_dpkg
class TestRepository:
    def test_apt_finds_each_package_with_its_dependencies_and_hash(self, tmp_path: Path) -> None:
        blobs = [make_deb(tmp_path, name) for name in ("b", "a")]
        index = aptrepo.write(tmp_path / "repo", blobs, lambda blob: tmp_path / blob.filename)
        assert (tmp_path / "repo/Packages").read_text() == index
        first, second = index.split("\n\n")
        assert first.startswith("Package: b\n")
        plain = (tmp_path / "repo/a_1_all.deb").read_bytes()
        assert second.splitlines()[-4:] == [
            " b",
            "Filename: a_1_all.deb",
            f"Size: {len(plain)}",
            f"SHA256: {hashlib.sha256(plain).hexdigest()}",
        ]
        assert "Depends: other (>= 1)" in second

    def test_writing_to_the_repository_does_not_reach_the_store(self, tmp_path: Path) -> None:
        blob = make_deb(tmp_path, "a", "none")
        stored = tmp_path / blob.filename
        stored.chmod(0o444)
        before = (stored.read_bytes(), stored.stat())
        aptrepo.write(tmp_path / "repo", [blob], lambda blob: stored)
        (tmp_path / "repo" / blob.filename).write_bytes(b"changed")
        shutil.rmtree(tmp_path / "repo")
        assert (stored.read_bytes(), stored.stat().st_ctime_ns) == (before[0], before[1].st_ctime_ns)

    def test_what_is_no_deb_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "x.deb").write_text("no")
        with pytest.raises(BuilderError, match=r"x\.deb"):
            aptrepo.write(tmp_path / "repo", [Blob("0" * 64, 2, "x.deb", ())], lambda blob: tmp_path / "x.deb")


class TestNeededEarly:
    """Of a made-up index: what a script may count on before its own package is unpacked."""

    def test_essential_packages_and_what_others_depend_on_in_advance(self) -> None:
        assert self.early(
            "Package: a\nEssential: yes",
            "Package: b\nEssential: no",
            "Package: c\nPre-Depends: d (>= 1:2~) | e:any,f",
            "Package: d",
            "Package: e\nDepends: g",
            "Package: f",
            "Package: g",
        ) == ["a", "d", "e", "f"]

    def test_a_package_by_the_name_that_it_provides(self) -> None:
        assert self.early(
            "Package: base-files\nEssential: yes\nPre-Depends: awk",
            "Package: mawk\nProvides: other (= 1), awk",
            "Package: awkward\nProvides: awk-doc",
        ) == ["base-files", "mawk"]

    def early(self, *paragraphs: str) -> list[str]:
        return debs.needed_early("\n\n".join(paragraphs))


class TestCheck:
    def test_equal_sets_pass(self) -> None:
        debs.check({"a": "1 amd64"}, {"a": "1 amd64"}, stage("base", "debian"))

    def test_each_difference_is_named(self) -> None:
        expected, found = {"a": "1 amd64", "b": "1 all"}, {"a": "2 amd64", "c": "1 all"}
        with pytest.raises(BuilderError) as error:
            debs.check(expected, found, stage("base", "debian"))
        assert str(error.value) == (
            "stage base: installed is not what is locked: a: 2 amd64 instead of 1 amd64, "
            "b: not installed instead of 1 all, c: 1 all instead of nothing; run `builder lock --upgrade a`"
        )

    def test_a_package_that_is_only_unpacked_is_not_installed(self, tmp_path: Path) -> None:
        status = tmp_path / "status"
        status.write_text(
            "Package: a\nStatus: install ok installed\nVersion: 1\nArchitecture: all\n\n"
            "Package: b\nStatus: install ok half-configured\nVersion: 1\nArchitecture: all\n"
        )
        assert debs.installed(status) == {"a": "1 all"}


LEFT = (
    "etc/ssh/ssh_host_ed25519_key",
    "etc/ssh/ssh_host_ed25519_key.pub",
    "etc/shadow-",
    "usr/sbin/policy-rc.d",
    "var/cache/apt/pkgcache.bin",
    "var/cache/apt/archives/a_1_all.deb",
    "var/cache/ldconfig/aux-cache",
    "var/lib/apt/lists/lock",
    "var/lib/dbus/machine-id",
    "var/lib/dpkg/status-old",
    "var/log/apt/term.log",
    "var/log/dpkg.log",
)
KEPT = (
    "etc/debian_version",
    "etc/os-release",
    "etc/shadow",
    "etc/ssh/sshd_config",
    "usr/share/doc/a/copyright",
    "var/lib/dpkg/status",
    "var/log/wtmp",
)
DOCUMENTATION = ("usr/share/doc/a/changelog.gz", "usr/share/man/man1/a.1.gz", "usr/share/locale/de/LC_MESSAGES/a.mo")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in (*LEFT, *KEPT, *DOCUMENTATION, "etc/machine-id"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    (tmp_path / "usr/share/doc/b").symlink_to("a")
    return tmp_path


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.glob("**/*") if path.is_file() or path.is_symlink()}


class TestClean:
    def test_leftovers_and_documentation_go_licences_and_folders_stay(self, root: Path) -> None:
        debs.clean(root, 86400, with_docs=False)
        assert files(root) == {*KEPT, "etc/machine-id", "usr/share/doc/b"}
        assert (root / "usr/share/man/man1").is_dir()
        assert (root / "var/cache/apt/archives").is_dir()

    def test_passwords_are_of_the_day_of_the_epoch(self, tmp_path: Path) -> None:
        (tmp_path / "etc").mkdir()
        shadow = tmp_path / "etc/shadow"
        shadow.write_text("root:*:17137:0:99999:7:::\nsystemd:!*:17137::::::\nnew::0:0:99999:7:::\nodd:*::\n")
        shadow.chmod(0o640)
        debs.clean(tmp_path, 20377 * 86400 + 5, with_docs=True)
        rows = "root:*:20377:0:99999:7:::\nsystemd:!*:20377::::::\nnew::0:0:99999:7:::\nodd:*::\n"
        assert (shadow.read_text(), shadow.stat().st_mode & 0o777) == (rows, 0o640)

    def test_documentation_stays_when_it_is_wanted(self, root: Path) -> None:
        debs.clean(root, 86400, with_docs=True)
        assert files(root) == {*KEPT, *DOCUMENTATION, "etc/machine-id", "usr/share/doc/b"}

    def test_a_machine_gets_its_id_at_its_first_start(self, root: Path) -> None:
        debs.clean(root, 86400, with_docs=True)
        assert (root / "etc/machine-id").read_bytes() == b""

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs mknod")
    def test_a_whiteout_still_hides_what_is_below(self, root: Path) -> None:
        os.mknod(root / "usr/share/doc/a/README", 0o600 | 0o020000, 0)
        debs.clean(root, 86400, with_docs=False)
        assert (root / "usr/share/doc/a/README").lstat().st_rdev == 0

    def test_links_that_leave_the_root_are_not_followed(
        self, root: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        outside = tmp_path_factory.mktemp("outside")
        (outside / "README").write_text("x")
        (root / "usr/share/doc/c").symlink_to(outside)
        debs.clean(root, 86400, with_docs=False)
        assert (outside / "README").exists()

    def test_a_folder_that_leads_to_the_machine_is_refused(
        self, root: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        outside = tmp_path_factory.mktemp("outside")
        (outside / "dpkg.log").write_text("x")
        shutil.rmtree(root / "var/log")
        (root / "var/log").symlink_to(outside)
        with pytest.raises(BuilderError, match="a package has made /var/log lead elsewhere"):
            debs.clean(root, 86400, with_docs=True)
        assert (outside / "dpkg.log").exists()

    def test_a_machine_id_that_is_a_link_is_left_alone(
        self, root: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        outside = tmp_path_factory.mktemp("outside") / "machine-id"
        outside.write_text("x")
        (root / "etc/machine-id").unlink()
        (root / "etc/machine-id").symlink_to(outside)
        debs.clean(root, 86400, with_docs=True)
        assert outside.read_text() == "x"
