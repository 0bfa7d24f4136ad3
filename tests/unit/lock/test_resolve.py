"""What moves and what stays when a recipe is locked again."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import pytest

from builder.errors import UsageError
from builder.lock.model import Blob, Deb, DebRequest, Lock, Request, UrlRequest, VenvRequest, Wheel
from builder.lock.resolve import Resolvers, resolve
from builder.recipe.model import Distribution

BOOKWORM = Distribution("debian", "bookworm", "amd64", "http://m/", "http://s/", ("main",))
BASE = DebRequest("base", ("python3.11",), ())
MORE = DebRequest("more", ("curl",), ("base",))
APP = VenvRequest("app", "/usr/bin/python3", ("idna",), (), (), "2025-10-16T00:00:00Z", "https://pypi.org/simple")
DRIVER = UrlRequest("driver", "https://example.org/driver.run", None, None)
ALL = (BASE, MORE, APP, DRIVER)


def blob(text: str) -> Blob:
    return Blob(text.encode().hex().ljust(64, "0"), 1, text, (f"https://example.org/{text}",))


class World:
    """Archives at version `now`; remembers what was asked of them."""

    def __init__(self) -> None:
        self.now = "1"
        self.asked: list[object] = []

    def resolvers(self) -> Resolvers:
        return Resolvers(self._debs, self._venv, self._url)

    def lock(self, requests: Sequence[Request], old: Lock | None, upgrade: frozenset[str] | None = frozenset()) -> Lock:
        self.asked.clear()
        return resolve("demo", BOOKWORM, requests, old, self.resolvers(), upgrade=upgrade)

    def _debs(
        self, requests: Sequence[DebRequest], known: Mapping[str, Sequence[Deb]], upgrade: frozenset[str] | None
    ) -> Mapping[str, Sequence[Deb]]:
        self.asked.append(("debs", [request.id for request in requests], upgrade))
        return {request.id: [self._deb(name, known, upgrade) for name in request.packages] for request in requests}

    def _deb(self, name: str, known: Mapping[str, Sequence[Deb]], upgrade: frozenset[str] | None) -> Deb:
        old = {deb.name: deb for debs in known.values() for deb in debs}
        if name in old and upgrade is not None and name not in upgrade:
            return old[name]
        return Deb(name, self.now, "amd64", "bookworm", blob(f"{name}-{self.now}"))

    def _venv(
        self, request: VenvRequest, lock: Lock, known: Sequence[Wheel], upgrade: Collection[str]
    ) -> Sequence[Wheel]:
        assert lock.debs  # the interpreter comes from them
        self.asked.append(("venv", request.id, sorted(wheel.name for wheel in known), sorted(upgrade)))
        return [
            Wheel(name, self.now, blob(f"{name}-{self.now}"), "2025-01-01T00:00:00Z") for name in request.requirements
        ]

    def _url(self, request: UrlRequest) -> Blob:
        self.asked.append(("url", request.id))
        return blob(f"{request.id}-{self.now}")


@pytest.fixture
def world() -> World:
    return World()


def test_a_first_lock_asks_for_everything(world: World) -> None:
    lock = world.lock(ALL, None)
    assert world.asked == [("debs", ["base", "more"], frozenset()), ("url", "driver"), ("venv", "app", [], [])]
    assert [wheel.name for wheel in lock.venvs["app"]] == ["idna"]


def test_a_second_lock_asks_for_nothing_and_is_equal(world: World) -> None:
    lock = world.lock(ALL, None)
    world.now = "2"
    assert world.lock(ALL, lock) == lock
    assert world.asked == []


def test_a_changed_environment_alone_is_resolved_from_what_it_had(world: World) -> None:
    lock = world.lock(ALL, None)
    world.now = "2"
    changed = world.lock((BASE, MORE, replace(APP, requirements=("idna", "httpx")), DRIVER), lock)
    assert world.asked == [("venv", "app", ["idna"], [])]
    assert changed.debs == lock.debs
    assert changed.urls == lock.urls


def test_changed_packages_keep_the_versions_of_the_others(world: World) -> None:
    lock = world.lock(ALL, None)
    world.now = "2"
    changed = world.lock((BASE, replace(MORE, packages=("curl", "less")), APP, DRIVER), lock)
    assert [(deb.name, deb.version) for deb in changed.debs["more"]] == [("curl", "1"), ("less", "2")]
    assert changed.venvs == lock.venvs


def test_upgrade_moves_what_it_names(world: World) -> None:
    lock = world.lock(ALL, None)
    world.now = "2"
    changed = world.lock(ALL, lock, frozenset({"python3.11"}))
    assert world.asked == [("debs", ["base", "more"], frozenset({"python3.11"}))]
    assert [(deb.name, deb.version) for deb in changed.debs["base"]] == [("python3.11", "2")]
    assert changed.debs["more"] == lock.debs["more"]


def test_upgrade_takes_any_spelling(world: World) -> None:
    lock = world.lock(ALL, None)
    world.lock(ALL, lock, frozenset({"Idna"}))
    assert world.asked == [("venv", "app", ["idna"], ["idna"])]
    world.lock(ALL, lock, frozenset({"driver"}))
    assert world.asked == [("url", "driver")]


def test_upgrade_of_an_unknown_name_is_a_wrong_use(world: World) -> None:
    with pytest.raises(UsageError, match="the lock has no nothing"):
        world.lock(ALL, world.lock(ALL, None), frozenset({"nothing"}))


def test_upgrade_all_forgets_what_was_locked(world: World) -> None:
    lock = world.lock(ALL, None)
    world.lock(ALL, lock, None)
    assert world.asked == [("debs", ["base", "more"], None), ("url", "driver"), ("venv", "app", [], [])]


def test_another_release_resolves_everything_again(world: World) -> None:
    lock = world.lock(ALL, None)
    world.asked.clear()
    resolve("demo", replace(BOOKWORM, release="trixie"), ALL, lock, world.resolvers())
    assert [each[0] for each in world.asked] == ["debs", "url", "venv"]


def test_a_wheel_that_is_too_new_is_resolved_again(world: World) -> None:
    lock = world.lock(ALL, None)
    late = replace(lock.venvs["app"][0], uploaded="2026-01-01T00:00:00Z")
    assert world.lock(ALL, replace(lock, venvs={"app": (late,)})) == lock


def test_what_is_no_longer_asked_for_is_dropped(world: World) -> None:
    lock = world.lock((BASE, APP), world.lock(ALL, None))
    assert set(lock.requests) == {"distribution", "deb:base", "venv:app"}
    assert (set(lock.debs), set(lock.urls)) == ({"base"}, set())
