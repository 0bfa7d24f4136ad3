"""Debian packages resolved by the real apt from small signed archives on disk."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from builder.errors import BuilderError
from builder.lock import archive
from builder.lock.debian import resolve_debs
from builder.lock.model import Deb, DebRequest
from builder.progress import Silent
from builder.recipe.model import Distribution

pytestmark = pytest.mark.skipif(not shutil.which("gpg") or not shutil.which("apt-get"), reason="needs apt and gpg")

BASE = DebRequest("base", ("server",), ())
MORE = DebRequest("more", ("extra",), ("base",))


class Said(Silent):
    """Keeps what would be shown."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@dataclass
class Archive:
    """A mirror and a security mirror on disk, signed by `home`'s key."""

    root: Path
    home: Path
    suites: dict[str, dict[str, str]] = field(default_factory=lambda: {"": {}, "-updates": {}, "-security": {}})
    date: str = "Sat, 11 Jul 2026 10:16:37 UTC"

    @property
    def distribution(self) -> Distribution:
        places = (f"file:{self.root}/{name}" for name in ("debian", "security"))
        return Distribution("debian", "bookworm", "amd64", *places, ("main",))

    def add(self, name: str, version: str = "1", pocket: str = "", source: str = "", **fields: str) -> None:
        """List one package in a suite, in place of an older version."""
        source = source or name
        wanted = {
            "Package": name,
            "Version": version,
            "Architecture": "amd64",
            "Description": "a test",
            **{key.replace("_", "-"): value for key, value in fields.items()},
            "Filename": f"pool/main/{source[0]}/{source}/{name}_{version.partition(':')[2] or version}_amd64.deb",
            "Size": str(len(name)),
            "SHA256": hashlib.sha256(f"{name} {version}".encode()).hexdigest(),
        }
        self.suites[pocket][name] = "".join(f"{key}: {value}\n" for key, value in wanted.items())

    def publish(self) -> Distribution:
        for pocket, listed in self.suites.items():
            suite = self.root / ("security" if pocket == "-security" else "debian") / "dists" / f"bookworm{pocket}"
            packages = suite / "main/binary-amd64/Packages"
            packages.parent.mkdir(parents=True, exist_ok=True)
            packages.write_text("\n".join(listed.values()))
            data = packages.read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            release = (
                f"Origin: Test\nSuite: bookworm{pocket}\nCodename: bookworm{pocket}\nDate: {self.date}\n"
                f"Components: main\nArchitectures: amd64\n"
                f"SHA256:\n {digest} {len(data)} main/binary-amd64/Packages\n"
            )
            self._sign(release, suite / "InRelease")
        return self.distribution

    def _sign(self, text: str, target: Path) -> None:
        argv = ["gpg", "--homedir", str(self.home), "--batch", "--yes", "--clearsign", "--output", str(target)]
        subprocess.run(argv, input=text.encode(), check=True, capture_output=True)


def _gpg(home: Path, *arguments: str) -> None:
    subprocess.run(["gpg", "--homedir", str(home), "--batch", *arguments], check=True, capture_output=True)


def _key(home: Path) -> Path:
    """A new key in `home`, and its keyring."""
    home.mkdir(mode=0o700)
    _gpg(home, "--passphrase", "", "--quick-generate-key", "Test <test@example.org>", "ed25519", "sign", "never")
    _gpg(home, "--output", str(home / "keyring.gpg"), "--export")
    return home / "keyring.gpg"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    # gpg's agent puts its socket there, whose path must be short
    folder = tmp_path_factory.mktemp("g") / "h"
    _key(folder)
    yield folder
    subprocess.run(["gpgconf", "--homedir", str(folder), "--kill", "gpg-agent"], check=False, capture_output=True)


@pytest.fixture
def debian(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    """An archive with two essential packages, apt, a server and something on top."""
    monkeypatch.setitem(archive._KEYRINGS, "debian", str(home / "keyring.gpg"))
    made = Archive(tmp_path, home)
    made.add("base-files", Essential="yes", Depends="usrmerge | usr-is-merged")
    made.add("usrmerge")
    made.add("usr-is-merged", source="usrmerge")
    made.add("apt", Depends="libapt")
    made.add("libapt", source="apt")
    made.add("server", Depends="libserver", Recommends="nice")
    made.add("libserver")
    made.add("nice")
    made.add("extra", Depends="libserver, libextra")
    made.add("libextra")
    return made


def resolve(
    distribution: Distribution,
    *requests: DebRequest,
    known: Mapping[str, Sequence[Deb]] | None = None,
    upgrade: frozenset[str] | None = frozenset(),
    progress: Any = None,
) -> dict[str, tuple[Deb, ...]]:
    return resolve_debs(distribution, requests, known or {}, upgrade=upgrade, progress=progress or Silent())


def versions(debs: Sequence[Deb]) -> dict[str, str]:
    return {deb.name: deb.version for deb in debs}


def test_from_nothing_comes_the_essential_set_with_apt_and_no_recommended_package(debian: Archive) -> None:
    found = resolve(debian.publish(), BASE)["base"]
    assert [deb.name for deb in found] == ["apt", "base-files", "libapt", "libserver", "server", "usr-is-merged"]


def test_on_top_comes_only_what_is_not_below(debian: Archive) -> None:
    assert list(versions(resolve(debian.publish(), BASE, MORE)["more"])) == ["extra", "libextra"]


def test_a_package_is_described_in_full(debian: Archive) -> None:
    debian.add("server", "2:1.5+b1", "-security", Depends="libserver")
    distribution = debian.publish()
    (deb,) = (deb for deb in resolve(distribution, BASE)["base"] if deb.name == "server")
    assert (deb.version, deb.architecture, deb.suite) == ("2:1.5+b1", "amd64", "bookworm-security")
    assert (deb.blob.filename, deb.blob.size) == ("server_1.5+b1_amd64.deb", 6)
    assert deb.blob.sha256 == hashlib.sha256(b"server 2:1.5+b1").hexdigest()
    path = "pool/main/s/server/server_1.5+b1_amd64.deb"
    kept = "http://snapshot.debian.org/archive/debian-security/20260711T221637Z"
    assert deb.blob.urls == (f"{distribution.security_mirror}/{path}", f"{kept}/{path}")
    assert archive.newest_snapshot([deb]) == "20260711T221637Z"


def test_a_locked_version_stays_while_the_index_lists_it(debian: Archive) -> None:
    known = resolve(debian.publish(), BASE)
    debian.add("libserver", "2", "-security")
    assert resolve(debian.publish(), BASE, known=known) == known
    assert versions(resolve(debian.publish(), BASE)["base"])["libserver"] == "2"


def test_a_named_package_moves_and_takes_those_of_its_source_along(debian: Archive) -> None:
    debian.add("server", Depends="libserver (= 1)")
    debian.add("libserver", source="server")
    known = resolve(debian.publish(), BASE)
    debian.add("server", "2", "-security", Depends="libserver (= 2)")
    debian.add("libserver", "2", "-security", source="server")
    debian.add("libapt", "2", "-security", source="apt")
    moved = versions(resolve(debian.publish(), BASE, known=known, upgrade=frozenset({"server"}))["base"])
    assert (moved["server"], moved["libserver"], moved["libapt"]) == ("2", "2", "1")
    everything = versions(resolve(debian.publish(), BASE, known=known, upgrade=None)["base"])
    assert (everything["server"], everything["libapt"]) == ("2", "2")


def test_a_version_that_the_index_dropped_moves_and_is_named(debian: Archive) -> None:
    known = resolve(debian.publish(), BASE)
    debian.add("libserver", "3")
    said = Said()
    assert versions(resolve(debian.publish(), BASE, known=known, progress=said)["base"])["libserver"] == "3"
    assert said.lines == ["base: libserver 1 is no longer in the archive, 3 taken"]


def test_a_newer_release_with_the_same_packages_changes_no_lock(debian: Archive) -> None:
    known = resolve(debian.publish(), BASE, MORE)
    debian.date = "Sat, 18 Jul 2026 10:16:37 UTC"
    assert resolve(debian.publish(), BASE, MORE, known=known) == known


def test_nothing_of_the_machine_enters(debian: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = resolve(debian.publish(), BASE)
    hostile = tmp_path / "hostile.conf"
    hostile.write_text(
        'APT::Install-Recommends "true";\nAPT::Architecture "i386";\nDir::State::status "/nonexistent";\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(hostile))
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    assert resolve(debian.publish(), BASE) == plain


def test_a_package_that_does_not_exist_is_named(debian: Archive) -> None:
    with pytest.raises(BuilderError, match=r"^stage base: Unable to locate package sevrer; correct Packages"):
        resolve(debian.publish(), replace(BASE, packages=("sevrer",)))


def test_dependencies_that_cannot_be_met_are_named(debian: Archive) -> None:
    debian.add("server", Depends="libserver (>= 9)")
    with pytest.raises(BuilderError, match=r"server : Depends: libserver \(>= 9\)"):
        resolve(debian.publish(), BASE)


def test_a_stage_may_not_change_the_one_below(debian: Archive) -> None:
    known = resolve(debian.publish(), BASE)
    debian.add("libserver", "2", "-security")
    debian.add("extra", Depends="libserver (>= 2)")
    with pytest.raises(BuilderError, match=r"^stage more: .*extra : Depends: libserver \(>= 2\)"):
        resolve(debian.publish(), BASE, MORE, known=known)


def test_a_stage_may_not_ask_for_another_version_than_the_one_below(debian: Archive) -> None:
    known = resolve(debian.publish(), BASE)
    debian.add("libserver", "2", "-security")
    with pytest.raises(BuilderError, match=r"^stage more: needs another version of libserver than the stages below"):
        resolve(debian.publish(), BASE, replace(MORE, packages=("libserver=2",)), known=known)


def test_a_signature_of_another_key_is_refused(
    debian: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(archive._KEYRINGS, "debian", str(_key(tmp_path / "other")))
    subprocess.run(["gpgconf", "--homedir", str(tmp_path / "other"), "--kill", "gpg-agent"], check=True)
    with pytest.raises(BuilderError, match=r"cannot read the archive: .*(public key|not signed)"):
        resolve(debian.publish(), BASE)


def test_an_archive_that_is_not_there_is_named(debian: Archive) -> None:
    with pytest.raises(BuilderError, match=r"cannot read the archive: .*/nowhere"):
        resolve(replace(debian.publish(), mirror=f"file:{debian.root}/nowhere"), BASE)


def test_a_missing_keyring_names_the_package_that_has_it(debian: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(archive._KEYRINGS, "debian", "/nonexistent/keyring.gpg")
    with pytest.raises(
        BuilderError, match=r"keyring\.gpg: no such keyring; run: sudo apt install debian-archive-keyring"
    ):
        resolve(debian.publish(), BASE)
