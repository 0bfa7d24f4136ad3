"""A lock beside what a recipe asks for, and beside another lock."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from builder import canonical
from builder.errors import BuilderError
from builder.lock.model import DebRequest, Lock, Request, UrlRequest, VenvRequest
from builder.lock.times import moment
from builder.recipe.model import Distribution

_KINDS: Mapping[type, tuple[str, str]] = {
    DebRequest: ("deb", "the Debian packages of stage"),
    VenvRequest: ("venv", "environment"),
    UrlRequest: ("url", "file"),
}
_TITLES = dict(_KINDS.values())


@dataclass(frozen=True)
class Change:
    """One thing that two locks have in different versions, or that only one of them has."""

    kind: str  # deb | wheel | url
    of: str  # the stage or environment it is locked for, "" for a URL
    name: str
    old: str  # version, or for a URL the first digits of its sha256; "" when it is new
    new: str  # "" when it is gone


def key(request: Request) -> str:
    """The name under which a lock remembers `request`: KIND:ID."""
    return f"{_KINDS[type(request)][0]}:{request.id}"


def collect(requests: Iterable[Request]) -> tuple[Request, ...]:
    """Each request once. Raises BuilderError when two of one kind and id ask for different things."""
    found: dict[str, Request] = {}
    for request in requests:
        if found.setdefault(key(request), request) != request:
            raise BuilderError("two stages or variants ask for different things under this name", where=key(request))
    return tuple(found.values())


def record(distribution: Distribution, requests: Iterable[Request]) -> dict[str, str]:
    """What `Lock.requests` remembers of a recipe."""
    return {
        "distribution": canonical.digest(asdict(distribution)),
        **{key(request): canonical.digest(asdict(request)) for request in requests},
    }


def stale(lock: Lock, requests: Sequence[Request], distribution: Distribution) -> list[str]:
    """What the recipe asks for and `lock` does not answer, one phrase each; empty when the lock holds."""
    phrases = []
    for name, digest in record(distribution, requests).items():
        if lock.requests.get(name) != digest:
            phrases.append(f"{_title(name)} {'changed' if name in lock.requests else 'is not locked'}")
    for request in requests:
        if isinstance(request, VenvRequest):
            phrases += _too_new(lock, request)
    return phrases


def unasked(lock: Lock, requests: Iterable[Request]) -> list[str]:
    """What `lock` holds and no request of any variant asks for, one phrase each."""
    asked = {"distribution", *map(key, requests)}
    return [f"{_title(name)} is not in the recipe" for name in sorted(lock.requests.keys() - asked)]


def diff(old: Lock, new: Lock) -> list[Change]:
    """Every package and file that `new` has otherwise than `old`, sorted."""
    before, after = dict(_versions(old)), dict(_versions(new))
    changes = []
    for place in sorted(before.keys() | after.keys()):
        (old_version, old_blob), (new_version, new_blob) = before.get(place, _NOTHING), after.get(place, _NOTHING)
        if old_blob == new_blob:
            continue
        if old_version == new_version:  # the same version, other bytes
            old_version, new_version = f"{old_version} ({old_blob[:12]})", f"{new_version} ({new_blob[:12]})"
        changes.append(Change(*place, old_version, new_version))
    return changes


_NOTHING = ("", "")


def _versions(lock: Lock) -> Iterator[tuple[tuple[str, str, str], tuple[str, str]]]:
    for stage, debs in lock.debs.items():
        yield from ((("deb", stage, deb.name), (deb.version, deb.blob.sha256)) for deb in debs)
    for venv, wheels in lock.venvs.items():
        yield from ((("wheel", venv, wheel.name), (wheel.version, wheel.blob.sha256)) for wheel in wheels)
    yield from ((("url", "", name), (blob.sha256[:12], blob.sha256)) for name, blob in lock.urls.items())


def _title(name: str) -> str:
    kind, _, owner = name.partition(":")
    return f"{_TITLES[kind]} {owner}" if owner else f"[{kind.capitalize()}]"


def _too_new(lock: Lock, request: VenvRequest) -> list[str]:
    limit = moment(request.exclude_newer)
    return [
        f"{wheel.blob.filename} of environment {request.id} was uploaded {wheel.uploaded}, after ExcludeNewer"
        for wheel in lock.venvs.get(request.id, ())
        if moment(wheel.uploaded) >= limit
    ]
