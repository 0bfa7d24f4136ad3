"""Which file of a version an interpreter takes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from packaging.version import Version

from builder.errors import BuilderError
from builder.lock.index import File, Interpreter, choose
from builder.lock.times import moment

PYTHON = Interpreter(
    "3.11.2",
    (
        "cp311-cp311-manylinux_2_36_x86_64",
        "cp311-cp311-manylinux_2_17_x86_64",
        "cp311-abi3-manylinux_2_17_x86_64",
        "cp39-abi3-manylinux_2_17_x86_64",
        "py3-none-any",
    ),
)
LIMIT = moment("2025-10-16T00:00:00Z")


def file(filename: str, **changes: object) -> File:
    url = f"https://example.org/{filename}"
    return replace(File(filename, url, "a" * 64, 1, moment("2025-10-01T00:00:00Z"), "", False), **changes)


def chosen(*files: File, version: str = "1.0") -> str:
    wheels = {choose(order, "demo", Version(version), PYTHON, LIMIT) for order in (files, files[::-1])}
    (wheel,) = wheels
    return wheel.blob.filename


@pytest.mark.parametrize(
    "names",
    [
        ("demo-1.0-cp311-cp311-manylinux_2_36_x86_64.whl", "demo-1.0-cp311-cp311-manylinux_2_17_x86_64.whl"),
        ("demo-1.0-cp311-cp311-manylinux_2_17_x86_64.whl", "demo-1.0-py3-none-any.whl"),
        ("demo-1.0-cp39-abi3-manylinux2014_x86_64.manylinux_2_17_x86_64.whl", "demo-1.0-py3-none-any.whl"),
        ("demo-1.0-2-py3-none-any.whl", "demo-1.0-1-py3-none-any.whl", "demo-1.0-py3-none-any.whl"),
        ("demo-1.0-10-py3-none-any.whl", "demo-1.0-9-py3-none-any.whl"),
        ("demo-1.0-py3-none-any.whl", "demo-1.0.tar.gz"),
        ("demo-1.0.tar.gz", "demo-1.0-cp312-cp312-manylinux_2_17_x86_64.whl", "demo-1.0-py3-none-win_amd64.whl"),
        ("demo-1.0.tar.gz", "demo-1.1.tar.gz", "demo_more-1.0.tar.gz", "demo-1.0-py2.7.egg", "demo-1.0.exe"),
    ],
)
def test_the_first_of_these_is_taken(names: tuple[str, ...]) -> None:
    assert chosen(*map(file, names)) == names[0]


def test_a_file_for_another_python_is_left() -> None:
    wheel, sdist = file("demo-1.0-py3-none-any.whl", requires_python=">=3.12"), file("demo-1.0.tar.gz")
    assert chosen(wheel, sdist) == sdist.filename


def test_an_invalid_requirement_of_python_allows_all() -> None:
    assert chosen(file("demo-1.0-py3-none-any.whl", requires_python=">=3.*,oops")) == "demo-1.0-py3-none-any.whl"


def test_a_yanked_file_comes_last() -> None:
    wheel, sdist = file("demo-1.0-py3-none-any.whl", yanked=True), file("demo-1.0.tar.gz")
    assert chosen(wheel, sdist) == sdist.filename
    assert chosen(wheel) == wheel.filename


def test_a_better_file_that_came_later_is_not_seen() -> None:
    late = file("demo-1.0-cp311-cp311-manylinux_2_36_x86_64.whl", uploaded=LIMIT)
    assert chosen(late, file("demo-1.0-py3-none-any.whl")) == "demo-1.0-py3-none-any.whl"


def test_only_files_that_came_later_are_an_error() -> None:
    late = file("demo-1.0-py3-none-any.whl", uploaded=moment("2025-10-16T12:00:00.25Z"))
    with pytest.raises(BuilderError) as caught:
        chosen(late)
    assert str(caught.value) == (
        "demo==1.0: demo-1.0-py3-none-any.whl was uploaded 2025-10-16T12:00:00Z, after ExcludeNewer"
    )


def test_no_file_that_suits_is_an_error() -> None:
    with pytest.raises(BuilderError, match=r"demo==1\.0: the index has no file of it for Python 3\.11\.2, cp311-cp311"):
        chosen(file("demo-1.0-py3-none-win_amd64.whl"))


def test_the_wheel_says_where_it_comes_from() -> None:
    wheel = choose([file("demo-1.0.tar.gz", size=7)], "demo", Version("1.0"), PYTHON, LIMIT)
    assert (wheel.name, wheel.version, wheel.uploaded) == ("demo", "1.0", "2025-10-01T00:00:00Z")
    assert (wheel.blob.size, wheel.blob.urls) == (7, ("https://example.org/demo-1.0.tar.gz",))
