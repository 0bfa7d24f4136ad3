"""Resolves Debian packages with the host's apt, which sees nothing of the host: no configuration, no package.

A locked version stays as long as the archive's index lists it. An index lists only the newest version of each suite,
and without its paragraph the dependencies of an older one are not known: such a package moves, and that is said.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote

from builder.command import new_folder, run
from builder.errors import BuilderError
from builder.lock import archive, control
from builder.lock.model import Blob, Deb, DebRequest
from builder.progress import Progress
from builder.recipe.model import Distribution

_CONFIGURATION = """\
Dir "{root}";
Dir::State::status "{root}/var/lib/dpkg/status";
APT::Architecture "{architecture}";
APT::Architectures {{ "{architecture}"; }};
APT::Install-Recommends "false";
APT::Install-Suggests "false";
APT::Sandbox::User "root";
APT::Get::Always-Include-Phased-Updates "true";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::GzipIndexes "false";
pkgCacheGen::ForceEssential "apt";
"""
_FOLDERS = (
    "etc/apt/apt.conf.d",
    "etc/apt/preferences.d",
    "etc/apt/sources.list.d",
    "etc/apt/trusted.gpg.d",
    "var/cache/apt/archives/partial",
    "var/lib/apt/lists/partial",
    "var/lib/dpkg",
)
_ESSENTIAL = ("?essential", "apt")
_NO_CONVERSION = "Package: usrmerge\nPin: release *\nPin-Priority: -1\n"
"""A new root has a merged /usr from the start: take usr-is-merged where a package wants one of the two."""
_KEEP, _HOLD = 990, 1001
"""Pin priorities (apt_preferences(5)): prefer a version to all newer ones; take no other, be it a downgrade."""
_PROXIES = frozenset({"http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy"})
_REASON = re.compile(r"^(?: |E: )(\S+ : .*|(?<=E: ).*)$", re.MULTILINE)
_PRINTED = re.compile(r"^'([^']+)' ([^_\s]+)_\S+ \d+", re.MULTILINE)


@dataclass(frozen=True)
class _Package:
    """One package as the index has it."""

    deb: Deb
    paragraph: str


@dataclass(frozen=True)
class _Index:
    """One Packages file that apt has fetched and checked."""

    suite: archive.Suite
    snapshot: str  # YYYYMMDDTHHMMSSZ
    path: Path


def resolve_debs(
    distribution: Distribution,
    requests: Sequence[DebRequest],
    known: Mapping[str, Sequence[Deb]],
    *,
    upgrade: frozenset[str] | None,
    progress: Progress,
) -> dict[str, tuple[Deb, ...]]:
    """The packages that each of `requests` adds, by its id, sorted by name; what is only recommended is left out.

    `requests` are all of a recipe's, lower ones first: what one has in `below` must come before it. A request with
    nothing below also gets the distribution's essential packages and apt. Versions in `known` are kept but for the
    packages named in `upgrade` and others of the same source; None lets all move.
    Raises BuilderError when the archive cannot be read or its signature is not the distribution's, when a package
    does not exist or its dependencies cannot be met, and when it would change a package below.
    """
    keyring = archive.suites(distribution)[0].keyring
    if not os.path.exists(keyring):
        package = archive.KEYRING_PACKAGES[distribution.name]
        raise BuilderError("no such keyring", where=keyring, hint=f"run: sudo apt install {package}")
    with new_folder("builder-apt-") as folder:
        apt = _Apt(folder, distribution)
        with progress.task(f"{distribution.name} {distribution.release}: package index"):
            indexes = apt.update()
        done: dict[str, list[_Package]] = {}
        for request in requests:
            with progress.task(f"{request.id}: Debian packages"):
                pins = _pins(known.get(request.id, ()), upgrade)
                below = [package for id_ in request.below for package in done[id_]]
                done[request.id] = _resolve(apt, indexes, request, below, pins)
            for deb, kept in _moved(pins, done[request.id]):
                progress.say(f"{request.id}: {deb.name} {deb.version} is no longer in the archive, {kept} taken")
    return {
        id_: tuple(_unchanged(package.deb, known.get(id_, ())) for package in packages)
        for id_, packages in done.items()
    }


def _resolve(
    apt: _Apt, indexes: Sequence[_Index], request: DebRequest, below: Sequence[_Package], pins: Sequence[Deb]
) -> list[_Package]:
    apt.set_installed(package.paragraph for package in below)
    apt.set_pins([(deb, _KEEP) for deb in pins] + [(package.deb, _HOLD) for package in below])
    wanted = request.packages if request.below else (*_ESSENTIAL, *request.packages)
    chosen = apt.choose(wanted, where=f"stage {request.id}")
    found = _look_up(indexes, chosen)
    packages = [found[uri] for uri in chosen]
    names = {package.deb.name for package in below}
    if changed := sorted(package.deb.name for package in packages if package.deb.name in names):
        raise BuilderError(
            f"needs another version of {', '.join(changed)} than the stages below it have",
            where=f"stage {request.id}",
            hint=f"run `builder lock --upgrade {changed[0]}`, or move its packages into the lower stage",
        )
    return sorted(packages, key=lambda package: package.deb.name)


class _Apt:
    """apt-get with a root of its own."""

    def __init__(self, root: Path, distribution: Distribution) -> None:
        self._root = root
        self._suites = {(suite.uri, suite.name): suite for suite in archive.suites(distribution)}
        for folder in _FOLDERS:
            (root / folder).mkdir(parents=True)
        configuration = _CONFIGURATION.format(root=root, architecture=distribution.architecture)
        if any("snapshot." in suite.uri for suite in self._suites.values()):
            configuration += 'Acquire::Check-Valid-Until "false";\n'
        (root / "apt.conf").write_text(configuration)
        (root / "etc/apt/sources.list.d/all.sources").write_text(archive.sources(distribution))
        proxies = {name: value for name, value in os.environ.items() if name.lower() in _PROXIES}
        self._environment = {
            **proxies,
            "APT_CONFIG": str(root / "apt.conf"),
            "HOME": str(root),
            "LC_ALL": "C.UTF-8",
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "TMPDIR": str(root),
        }
        self.set_installed(())

    def set_installed(self, paragraphs: Iterable[str]) -> None:
        status = "".join(f"{paragraph}\nStatus: install ok installed\n\n" for paragraph in paragraphs)
        (self._root / "var/lib/dpkg/status").write_text(status, errors="surrogateescape")

    def set_pins(self, pins: Iterable[tuple[Deb, int]]) -> None:
        paragraphs = [_NO_CONVERSION]
        for deb, priority in pins:
            paragraphs.append(f"Package: {deb.name}\nPin: version {deb.version}\nPin-Priority: {priority}\n")
        (self._root / "etc/apt/preferences").write_text("\n".join(paragraphs))

    def update(self) -> list[_Index]:
        """Fetch the suites' indexes and check their signatures."""
        try:
            run(["apt-get", "-q", "update"], env=self._environment)
        except BuilderError as error:
            raise BuilderError(f"cannot read the archive: {error.what}", where="apt-get update") from error
        form = "$(REPO_URI)\t$(RELEASE)\t$(COMPONENT)\t$(FILENAME)"
        listed = run(["apt-get", "indextargets", "--format", form, "Created-By: Packages"], env=self._environment)
        indexes = []
        for line in listed.decode().splitlines():
            uri, release, component, filename = line.split("\t")
            # a component that a suite does not have leaves no file
            if os.path.exists(filename):
                stem = filename.partition(f"_{component.replace('/', '_')}_binary-")[0]
                snapshot = _snapshot(Path(f"{stem}_InRelease"), Path(f"{stem}_Release"))
                indexes.append(_Index(self._suites[uri.rstrip("/"), release], snapshot, Path(filename)))
        return indexes

    def choose(self, packages: Sequence[str], *, where: str) -> dict[str, str]:
        """The address of each package that installing `packages` adds, with the package's name."""
        install = ["apt-get", "-q", "--no-remove", "--print-uris", "install", *packages]
        try:
            printed = run(install, env=self._environment)
        except BuilderError as error:
            reason = self._reason(install) or error.what
            hint = (
                "correct Packages in the recipe, or run `builder lock --upgrade` where a locked version is in the way"
            )
            raise BuilderError(reason, where=where, hint=hint) from error
        return {unquote(uri): name for uri, name in _PRINTED.findall(printed.decode())}

    def _reason(self, install: Sequence[str]) -> str:
        """What apt says against it: unmet dependencies stand on standard output, indented, errors on the other."""
        said = run(["sh", "-c", '"$@" 2>&1 || true', "sh", *install], env=self._environment).decode()
        return ", ".join(match[1] for match in _REASON.finditer(said))


def _snapshot(*releases: Path) -> str:
    for path in releases:
        if path.exists():
            header = control.fields(path.read_text(errors="replace").partition("\nMD5Sum:")[0])
            return archive.snapshot_time(header["Date"])
    raise BuilderError("apt kept no Release file", where=releases[0])


def _look_up(indexes: Sequence[_Index], chosen: Mapping[str, str]) -> dict[str, _Package]:
    """The packages at the addresses `chosen`; of one that stands in two suites, the first of them."""
    names = frozenset(chosen.values())
    found: dict[str, _Package] = {}
    for index in indexes:
        for paragraph in control.paragraphs(index.path.read_text(errors="surrogateescape")):
            name = paragraph.partition("\n")[0].removeprefix("Package: ")
            if name in names:
                fields = control.fields(paragraph)
                uri = unquote(f"{index.suite.uri}/{fields['Filename']}")
                if uri in chosen and uri not in found:
                    found[uri] = _Package(_deb(index, fields), paragraph)
    if missing := [uri for uri in chosen if uri not in found]:
        raise BuilderError("apt chose it and no index lists it", where=missing[0])
    return found


def _deb(index: _Index, fields: Mapping[str, str]) -> Deb:
    path = fields["Filename"]
    urls = (f"{index.suite.uri}/{path}", f"{index.suite.snapshots}/{index.snapshot}/{path}")
    blob = Blob(fields["SHA256"], int(fields["Size"]), path.rpartition("/")[2], urls)
    return Deb(fields["Package"], fields["Version"], fields["Architecture"], index.suite.name, blob)


def _pins(known: Sequence[Deb], upgrade: frozenset[str] | None) -> list[Deb]:
    """Those of `known` that stay: packages of one source move together, since they depend on each other's version."""
    if upgrade is None:
        return []
    moving = {_source(deb) for deb in known if deb.name in upgrade}
    return [deb for deb in known if _source(deb) not in moving]


def _source(deb: Deb) -> str:
    """The folder of the archive's pool that holds all packages of one source."""
    return deb.blob.urls[0].rpartition("/")[0].rpartition("/pool/")[2]


def _moved(pins: Sequence[Deb], packages: Sequence[_Package]) -> Iterable[tuple[Deb, str]]:
    versions = {package.deb.name: package.deb.version for package in packages}
    for deb in pins:
        if versions.get(deb.name, deb.version) != deb.version:
            yield deb, versions[deb.name]


def _unchanged(deb: Deb, known: Sequence[Deb]) -> Deb:
    """The locked entry of the same file at the same place, so that a newer snapshot alone changes no lock."""
    for old in known:
        if old.blob.urls[:1] == deb.blob.urls[:1] and replace(deb, blob=replace(deb.blob, urls=old.blob.urls)) == old:
            return old
    return deb
