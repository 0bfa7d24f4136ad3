"""What a lock lacks, what it has too much, and what is different in another one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from builder.errors import BuilderError
from builder.lock import Change, collect, diff, record, stale, unasked
from builder.lock.model import Blob, Deb, DebRequest, Lock, UrlRequest, VenvRequest, Wheel
from builder.recipe.model import Distribution

BOOKWORM = Distribution("debian", "bookworm", "amd64", "http://m/", "http://s/", ("main",))
BASE = DebRequest("base", ("python3",), ())
APP = VenvRequest("app", "/usr/bin/python3", ("idna",), (), (), "2025-10-16T00:00:00Z", "https://pypi.org/simple")
DRIVER = UrlRequest("driver", "https://example.org/driver.run", None, None)
ALL = (BASE, APP, DRIVER)


def blob(sha256: str = "a" * 64) -> Blob:
    return Blob(sha256, 1, "file", ("https://example.org/file",))


def wheel(version: str = "3.10", uploaded: str = "2025-10-15T23:59:59Z", sha256: str = "a" * 64) -> Wheel:
    return Wheel("idna", version, blob(sha256), uploaded)


def lock() -> Lock:
    debs = {"base": (Deb("python3", "3.11", "amd64", "bookworm", blob()),)}
    return Lock("demo", "", record(BOOKWORM, ALL), debs, {"app": (wheel(),)}, {"driver": blob()})


def test_a_lock_of_these_requests_holds() -> None:
    assert stale(lock(), ALL, BOOKWORM) == []
    assert unasked(lock(), ALL) == []


def test_requests_of_one_variant_are_enough() -> None:
    assert stale(lock(), (BASE,), BOOKWORM) == []


@pytest.mark.parametrize(
    ("changed", "phrase"),
    [
        (replace(BASE, packages=("python3", "curl")), "the Debian packages of stage base changed"),
        (replace(APP, requirements=("idna==3",)), "environment app changed"),
        (replace(APP, id="other"), "environment other is not locked"),
        (replace(DRIVER, url="https://example.net/driver.run"), "file driver changed"),
    ],
)
def test_a_changed_request_is_named(changed: BASE | APP | DRIVER, phrase: str) -> None:
    assert stale(lock(), (changed,), BOOKWORM) == [phrase]


def test_another_release_makes_everything_stale() -> None:
    assert stale(lock(), ALL, replace(BOOKWORM, release="trixie")) == ["[Distribution] changed"]


@pytest.mark.parametrize("uploaded", ["2025-10-16T00:00:00Z", "2026-01-01T00:00:00Z"])
def test_a_wheel_from_after_exclude_newer_is_named(uploaded: str) -> None:
    late = replace(lock(), venvs={"app": (wheel(uploaded=uploaded),)})
    assert stale(late, ALL, BOOKWORM) == [
        f"file of environment app was uploaded {uploaded}, after ExcludeNewer",
    ]


def test_what_nobody_asks_for_is_named() -> None:
    assert unasked(lock(), (BASE,)) == ["file driver is not in the recipe", "environment app is not in the recipe"]


def test_equal_requests_of_variants_are_one() -> None:
    assert collect((BASE, APP, BASE)) == (BASE, APP)


def test_one_name_for_two_things_is_an_error() -> None:
    with pytest.raises(BuilderError, match="venv:app: two stages or variants ask for different things"):
        collect((APP, replace(APP, python="/usr/bin/python3.12")))


def test_diff_shows_versions_old_and_new() -> None:
    old = lock()
    new = replace(
        old,
        debs={"base": (), "more": (Deb("curl", "8", "amd64", "bookworm", blob()),)},
        venvs={"app": (wheel("3.11", sha256="b" * 64),)},
        urls={"driver": blob("c" * 64)},
    )
    assert diff(old, new) == [
        Change("deb", "base", "python3", "3.11", ""),
        Change("deb", "more", "curl", "", "8"),
        Change("url", "", "driver", "a" * 12, "c" * 12),
        Change("wheel", "app", "idna", "3.10", "3.11"),
    ]
    assert diff(old, old) == []


def test_diff_tells_other_bytes_of_the_same_version() -> None:
    new = replace(lock(), venvs={"app": (wheel(sha256="b" * 64),)})
    assert diff(lock(), new) == [Change("wheel", "app", "idna", f"3.10 ({'a' * 12})", f"3.10 ({'b' * 12})")]
