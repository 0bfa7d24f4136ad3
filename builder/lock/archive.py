"""Package archives of Debian and Ubuntu: which suites a release has, who signs them, where old files are kept."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime

from builder.lock.model import Deb
from builder.recipe.model import Distribution

_KEYRINGS = {
    "debian": "/usr/share/keyrings/debian-archive-keyring.gpg",
    "ubuntu": "/usr/share/keyrings/ubuntu-archive-keyring.gpg",
}
KEYRING_PACKAGES = {"debian": "debian-archive-keyring", "ubuntu": "ubuntu-keyring"}
"""The package that holds a distribution's keyring, on the host as in a template."""

_SNAPSHOTS = {
    "debian": ("http://snapshot.debian.org/archive/debian", "http://snapshot.debian.org/archive/debian-security"),
    "ubuntu": ("https://snapshot.ubuntu.com/ubuntu", "https://snapshot.ubuntu.com/ubuntu"),
}
_SNAPSHOT_DELAY = timedelta(hours=12)
"""Snapshots are taken every six hours; archives keep a file for longer than a day after its successor came."""
_IN_SNAPSHOT = re.compile(r"^https?://snapshot\.(?:debian|ubuntu)\.\w+/.*?/(\d{8}T\d{6}Z)/")


@dataclass(frozen=True)
class Suite:
    """One part of an archive that apt reads."""

    uri: str  # no '/' at the end
    name: str  # bookworm-security
    components: tuple[str, ...]
    keyring: str  # absolute path, on the host as in a template
    snapshots: str  # the address below which every state of this archive is kept


def suites(distribution: Distribution) -> tuple[Suite, ...]:
    """The release itself, its updates and its security updates."""
    mirror, security = distribution.mirror.rstrip("/"), distribution.security_mirror.rstrip("/")
    snapshots, security_snapshots = _SNAPSHOTS[distribution.name]
    keyring = _KEYRINGS[distribution.name]
    return tuple(
        Suite(uri, distribution.release + pocket, distribution.components, keyring, kept)
        for uri, pocket, kept in (
            (mirror, "", snapshots),
            (mirror, "-updates", snapshots),
            (security, "-security", security_snapshots),
        )
    )


def sources(distribution: Distribution) -> str:
    """What apt reads the suites from, for /etc/apt/sources.list.d/NAME.sources (sources.list(5), deb822 style)."""
    stanzas: dict[tuple[str, str, str], list[str]] = {}
    for suite in suites(distribution):
        place = (suite.uri, " ".join(suite.components), suite.keyring)
        stanzas.setdefault(place, []).append(suite.name)
    return "\n".join(
        f"Types: deb\nURIs: {uri}\nSuites: {' '.join(names)}\nComponents: {components}\nSigned-By: {keyring}\n"
        for (uri, components, keyring), names in stanzas.items()
    )


def snapshot_time(release_date: str) -> str:
    """A time (YYYYMMDDTHHMMSSZ) at which snapshots have all files of the Release file of this `Date`.

    Raises ValueError for what is no date of RFC 5322.
    """
    moment: datetime = parsedate_to_datetime(release_date)
    utc = moment.astimezone(timezone.utc) if moment.tzinfo else moment
    return (utc + _SNAPSHOT_DELAY).strftime("%Y%m%dT%H%M%SZ")


def newest_snapshot(debs: Iterable[Deb]) -> str:
    """The latest snapshot that `debs` are taken from (YYYYMMDDTHHMMSSZ), "" when there are none."""
    times = (match[1] for deb in debs for url in deb.blob.urls if (match := _IN_SNAPSHOT.match(url)))
    return max(times, default="")
