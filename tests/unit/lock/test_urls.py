"""Locking a file by its URL."""

from __future__ import annotations

import gzip
import hashlib
from typing import Any

import pytest
import requests

from builder.errors import BuilderError
from builder.lock.model import Blob, UrlRequest
from builder.lock.urls import resolve_url
from builder.progress import Silent

BODY = b"driver" * 1000
SHA = hashlib.sha256(BODY).hexdigest()


def lock(url: str, sha256: str | None = None, size: int | None = None) -> Blob:
    return resolve_url(UrlRequest("driver", url, sha256, size), requests.Session(), Silent())


def test_a_published_file_is_not_fetched(site: Any) -> None:
    url = f"{site.url}/driver.run"
    assert lock(url, SHA, 6000) == Blob(SHA, 6000, "driver.run", (url,))
    assert site.seen == []


@pytest.mark.parametrize("published", [(None, None), (SHA, None), (None, 6000)])
def test_another_file_is_read_once(site: Any, published: tuple[Any, Any]) -> None:
    site.pages["/a%20b/driver.run?x=1"] = BODY
    url = f"{site.url}/a%20b/driver.run?x=1"
    assert lock(url, *published) == Blob(SHA, 6000, "driver.run", (url,))
    assert len(site.seen) == 1


def test_bytes_are_counted_as_stored(site: Any) -> None:
    site.pages["/a.gz"] = packed = gzip.compress(BODY)
    assert lock(f"{site.url}/a.gz").size == len(packed)


@pytest.mark.parametrize(
    ("published", "message"),
    [
        (("0" * 64, None), f"its sha256 is {SHA}, the recipe says 0000"),
        ((None, 5), "its size is 6000, the recipe says 5"),
    ],
)
def test_other_bytes_than_published_are_an_error(site: Any, published: tuple[Any, Any], message: str) -> None:
    site.pages["/driver.run"] = BODY
    with pytest.raises(BuilderError) as caught:
        lock(f"{site.url}/driver.run", *published)
    assert message in str(caught.value)
    assert "find out why before you change [[Url]] driver" in str(caught.value)


def test_a_file_that_ends_early_is_an_error(site: Any) -> None:
    site.pages["/driver.run"] = (200, BODY[:100], 6000)
    with pytest.raises(BuilderError, match=r"/driver\.run: "):
        lock(f"{site.url}/driver.run")


def test_a_missing_file_is_an_error_without_the_password(site: Any) -> None:
    with pytest.raises(BuilderError) as caught:
        lock(site.url.replace("//", "//me:secret@") + "/gone.run")
    assert str(caught.value) == f"{site.url}/gone.run: HTTP 404 Not Found"


def test_nobody_there_is_an_error() -> None:
    with pytest.raises(BuilderError, match=r"http://127\.0\.0\.1:1/x: cannot be read"):
        lock("http://127.0.0.1:1/x")


def test_a_url_without_a_file_name_is_an_error() -> None:
    with pytest.raises(BuilderError, match="names no file"):
        lock("https://example.org/", SHA, 1)
