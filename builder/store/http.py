"""One attempt to read a URL: http(s) from a byte on, or a local file."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import unquote, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter

from builder.store.files import CHUNK, chunks

_TIMEOUT = (15, 60)
"""Seconds to connect, and to wait for the next bytes."""
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
_GONE = frozenset({404, 410})


class TransientError(Exception):
    """Worth another attempt, not before `wait` seconds when the server says so."""

    def __init__(self, what: str, wait: float = 0.0) -> None:
        super().__init__(what)
        self.wait = wait


class RefusedError(Exception):
    """No use asking this URL again; `gone` when the server says that the file is not there."""

    def __init__(self, what: str, *, gone: bool = False) -> None:
        super().__init__(what)
        self.gone = gone


class MisfitError(RefusedError):
    """What came does not go with the bytes that were there before: worth one attempt from the start."""


@dataclass(frozen=True)
class Body:
    """An answer: bytes from `start` on of a file of `size` bytes (None when not told)."""

    start: int
    size: int | None
    parts: Iterator[bytes]


def new_session(jobs: int) -> requests.Session:
    """A session that keeps `jobs` connections to a host."""
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(pool_connections=jobs, pool_maxsize=jobs))
    return session


@contextmanager
def reading(session: requests.Session, url: str, offset: int) -> Iterator[Body]:
    """Ask for `url` from byte `offset` on; the answer may start at 0 all the same.

    Bytes come as stored, never decoded. Raises TransientError or RefusedError, within the block too.
    """
    scheme = urlsplit(url).scheme
    if scheme == "file":
        with _file(url, offset) as body:
            yield body
    elif scheme in ("http", "https"):
        with _http(session, url, offset) as body:
            yield body
    else:
        raise RefusedError("is not an http, https or file URL")


@contextmanager
def _file(url: str, offset: int) -> Iterator[Body]:
    try:
        fd = os.open(unquote(urlsplit(url).path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise RefusedError(error.strerror or str(error), gone=isinstance(error, FileNotFoundError)) from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise RefusedError("is not a regular file")
        yield Body(os.lseek(fd, offset, os.SEEK_SET), status.st_size, chunks(fd))
    finally:
        os.close(fd)


@contextmanager
def _http(session: requests.Session, url: str, offset: int) -> Iterator[Body]:
    headers = {"Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    try:
        with session.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
            _judge(response)
            start, size = _extent(response, offset)
            yield Body(start, size, response.raw.stream(CHUNK, decode_content=False))
    except requests.exceptions.SSLError as error:
        raise RefusedError(f"TLS: {_innermost(error)}") from error
    except (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError) as error:
        raise TransientError(_innermost(error)) from error
    except requests.RequestException as error:
        raise RefusedError(_innermost(error)) from error


def _judge(response: requests.Response) -> None:
    status = response.status_code
    said = f"HTTP {status} {response.reason}"
    if status in _BUSY:
        raise TransientError(said, _retry_after(response.headers.get("Retry-After", "")))
    if status not in (200, 206, 416):
        raise RefusedError(said, gone=status in _GONE)


def _extent(response: requests.Response, offset: int) -> tuple[int, int | None]:
    """Where the answer starts and how large the whole file is (RFC 9110, sections 14.4 and 15.5.17)."""
    length = response.headers.get("Content-Length", "")
    if response.status_code == 200:
        return 0, int(length) if length.isdecimal() else None
    place, _, total = response.headers.get("Content-Range", "").removeprefix("bytes").strip().partition("/")
    size = int(total) if total.isdecimal() else None
    if response.status_code == 416:
        raise RefusedError(f"has {total or 'fewer'} bytes, fewer than the {offset} that were fetched before")
    first = place.partition("-")[0]
    if not first.isdecimal() or int(first) != offset:
        raise MisfitError(f"sent bytes {place or 'unknown'} when asked for {offset} and more")
    return offset, size


def _retry_after(value: str) -> float:
    """Seconds to wait, from a number or a date (RFC 9110, section 10.2.3); 0 when neither."""
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0


def _innermost(error: BaseException) -> str:
    """What went wrong at the bottom, without the wrappings of two libraries."""
    while True:
        reason = getattr(error, "reason", None)
        inner = next((arg for arg in (reason, *error.args[::-1]) if isinstance(arg, BaseException)), None)
        if inner is None:
            return str(error.args[-1] if error.args else error) or type(error).__name__
        error = inner
