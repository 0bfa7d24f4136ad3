"""From what a recipe asks for, and the lock it has, to a new lock: what still holds is kept, the rest is resolved."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from packaging.utils import canonicalize_name

from builder.errors import UsageError
from builder.lock.archive import newest_snapshot
from builder.lock.compare import record, stale
from builder.lock.model import Blob, Deb, DebRequest, Lock, Request, UrlRequest, VenvRequest, Wheel
from builder.recipe.model import Distribution
from builder.recipe.tables import did_you_mean


@dataclass(frozen=True)
class Resolvers:
    """What finds an answer to each kind of request."""

    debs: Callable[
        [Sequence[DebRequest], Mapping[str, Sequence[Deb]], frozenset[str] | None], Mapping[str, Sequence[Deb]]
    ]
    """Requests, what is locked so far, and the packages that may move: None for all."""
    venv: Callable[[VenvRequest, Lock, Sequence[Wheel], Collection[str]], Sequence[Wheel]]
    """Request, the new lock with its Debian packages, what is locked so far, and the packages that alone may move."""
    url: Callable[[UrlRequest], Blob]


def resolve(
    recipe: str,
    distribution: Distribution,
    requests: Sequence[Request],
    old: Lock | None,
    resolvers: Resolvers,
    *,
    upgrade: frozenset[str] | None = frozenset(),
) -> Lock:
    """The lock of `recipe` for all `requests` of its variants.

    What `old` answers is kept. Where a request changed, versions in `old` stay as far as they satisfy it. `upgrade`
    names packages and files that may move beside; None takes the newest of everything. Raises UsageError when
    `upgrade` names what `old` does not have, and what the resolvers raise.
    """
    old = old or Lock(recipe, "")
    upgrade = None if upgrade is None else frozenset(map(_name, upgrade))
    names = _names(old)
    if unknown := sorted((upgrade or frozenset()) - names):
        raise UsageError(f"the lock has no {unknown[0]}", where="--upgrade", hint=did_you_mean(unknown[0], names))

    def holds(request: Request, names: Collection[str]) -> bool:
        return upgrade is not None and not upgrade.intersection(names) and not stale(old, [request], distribution)

    asked = [request for request in requests if isinstance(request, DebRequest)]
    debs: Mapping[str, Sequence[Deb]] = {request.id: old.debs.get(request.id, ()) for request in asked}
    if not all(holds(request, {_name(deb.name) for deb in debs[request.id]}) for request in asked):
        debs = resolvers.debs(asked, old.debs, None if upgrade is None else _debs(old, upgrade))
    urls = {}
    for request in requests:
        if isinstance(request, UrlRequest):
            urls[request.id] = old.urls[request.id] if holds(request, [_name(request.id)]) else resolvers.url(request)
    lock = Lock(
        recipe=recipe,
        snapshot=newest_snapshot(deb for some in debs.values() for deb in some),
        requests=record(distribution, requests),
        debs={name: tuple(some) for name, some in debs.items()},
        urls=urls,
    )
    venvs = {}
    for request in requests:
        if isinstance(request, VenvRequest):
            known = old.venvs.get(request.id, ())
            if not holds(request, [wheel.name for wheel in known]):
                known = tuple(resolvers.venv(request, lock, () if upgrade is None else known, upgrade or ()))
            venvs[request.id] = known
    return replace(lock, venvs=venvs)


def _debs(lock: Lock, names: Collection[str]) -> frozenset[str]:
    """The Debian packages of `lock` that `names` mean, spelt as Debian does."""
    return frozenset(deb.name for some in lock.debs.values() for deb in some if _name(deb.name) in names)


def _names(lock: Lock) -> frozenset[str]:
    debs = (deb.name for some in lock.debs.values() for deb in some)
    wheels = (wheel.name for some in lock.venvs.values() for wheel in some)
    return frozenset(map(_name, (*debs, *wheels, *lock.urls)))


def _name(name: str) -> str:
    """Names as `--upgrade` compares them: however a person spells them."""
    return canonicalize_name(name)
